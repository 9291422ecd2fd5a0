"""The variants of `python -m bench accuracy`: the method and options of `wcord-fast distill` for each."""

from __future__ import annotations

Variants = dict[str, tuple[str, list[str]]]

DUAL = ["--wcord.critic", "dual", "--wcord.dual-scale"]
RAMP = 0.25  # part of the epochs
FILLED = {name: [f"--{name}.init-banks", "true"] for name in ("crd", "wcord")}
RAMPED = {"crd": ["--crd.ramp", str(RAMP)], "wcord": ["--wcord.ramp-gckt", str(RAMP)]}
Z = {name: [f"--{name}.z", "ramp"] for name in ("crd", "wcord")}
BOTH = {name: [*FILLED[name], *RAMPED[name], *Z[name]] for name in ("crd", "wcord")}
CENTRED = ["--wcord.lckt-features", "auto", "--wcord.lckt-center", "batch"]


def local(pairs: str, weight: float, rho: float | None = None, eps: float = 0.05) -> list[str]:
    """Options of the local term on centred raw features, mapped where the widths are unequal.

    With `rho` it is sinkhorn's transport, whose reference plan keeps that part on the pairs.
    """
    text = [*CENTRED, "--wcord.lckt-pairs", pairs, "--wcord.lambda-lckt", f"{weight:g}"]
    if rho is None:
        return text
    return [*text, "--wcord.lckt-rho", f"{rho:g}", "--wcord.ot-solver", "sinkhorn", "--wcord.ot-eps", f"{eps:g}"]


def _all() -> Variants:
    result: Variants = {
        "plain": ("ce", []),
        "KD": ("kd", []),
        "CRD": ("crd", []),
        "GCKT nce_sn": ("gckt", []),
        "GCKT nce": ("gckt", ["--wcord.critic", "nce"]),
        "GCKT dual, scale 1": ("gckt", [*DUAL, "1"]),
        "GCKT dual, scale 4": ("gckt", [*DUAL, "4"]),
        "GCKT dual, scale 14": ("gckt", [*DUAL, "14"]),
        "LCKT mean": ("lckt", []),
        "LCKT sum": ("lckt", ["--wcord.lckt-reduction", "sum"]),
        "WCoRD": ("wcord", []),
    }
    for name, method, section in (("CRD", "crd", "crd"), ("GCKT", "gckt", "wcord")):
        result[f"{name} banks"] = (method, FILLED[section])
        result[f"{name} ramp"] = (method, RAMPED[section])
        result[f"{name} banks, ramp"] = (method, [*FILLED[section], *RAMPED[section]])
        result[f"{name} banks, ramp, z"] = (method, BOTH[section])
    for negatives in ("bank", "batch", "queue"):
        result[f"infonce {negatives}"] = ("gckt", ["--wcord.critic", "infonce", "--wcord.negatives", negatives])
    for rows in (256, 1024):
        result[f"infonce queue, {rows} rows"] = ("gckt", [*result["infonce queue"][1], "--wcord.queue-size", str(rows)])
    for weight in (1, 3, 10):
        result[f"LCKT none, weight {weight}"] = ("lckt", local("none", weight))
        result[f"LCKT only, weight {weight}"] = ("lckt", local("only", weight))
        for rho in (0.5, 0.9, 0.99):
            result[f"LCKT prior {rho}, weight {weight}"] = ("lckt", local("prior", weight, rho))
    result["LCKT only uncentred, weight 3"] = ("lckt", [*local("only", 3), "--wcord.lckt-center", "none"])
    result["LCKT only mapped, weight 3"] = ("lckt", [*local("only", 3), "--wcord.lckt-features", "mapped"])
    result["LCKT only embed, weight 3"] = (
        "lckt",
        ["--wcord.lckt-pairs", "only", "--wcord.lambda-lckt", "3", "--wcord.lckt-center", "batch"],
    )
    for eps in (0.1, 0.2):
        result[f"LCKT prior 0.9, eps {eps}, weight 3"] = ("lckt", local("prior", 3, 0.9, eps))
    result["LCKT prior 0.9, ipot, weight 3"] = ("lckt", [*local("prior", 3), "--wcord.lckt-rho", "0.9"])
    for weight in (3, 10):
        result[f"WCoRD only, weight {weight}"] = ("wcord", [*BOTH["wcord"], *local("only", weight)])
        for rho in (0.9, 0.99):
            result[f"WCoRD prior {rho}, weight {weight}"] = ("wcord", [*BOTH["wcord"], *local("prior", weight, rho)])
    for name in ("FitNet", "SP", "RKD", "PKT", "AT"):
        result[name] = (name.lower(), [])
    return result | {
        f"{name}+KD": (f"{method}+kd", options)
        for name, (method, options) in result.items()
        if method not in ("ce", "kd")
    }


PAPER = ["--wcord.preset", "paper"]  # what a variant names is beside the published options
VARIANTS: Variants = {
    name: (method, [*PAPER, *options] if method.removesuffix("+kd") in ("wcord", "gckt", "lckt") else options)
    for name, (method, options) in _all().items()
}
TUNED = "WCoRD only, weight 10"  # the driver's preset "tuned"
PUBLISHED = [*list(VARIANTS)[:11], "WCoRD+KD"]  # the paper's, and the forms of its critics
