"""What the pages say of `python -m bench accuracy`: a table, a sentence on its differences, and LCKT's share."""

from __future__ import annotations

import statistics

from bench.report_lines import paragraph
from bench.report_tables import Row, latest, table, where

Runs = dict[str, dict[int, Row]]  # variant -> seed -> row
SETTING = ("teacher", "teacher_accuracy", "student", "images", "epochs")


def newest(rows: list[Row]) -> Runs:
    """The rows of the last setting in the file."""
    last = tuple(rows[-1][key] for key in SETTING)
    runs: Runs = {}
    found = latest([r for r in rows if tuple(r[key] for key in SETTING) == last], "variant", "seed")
    for (variant, seed), row in found.items():
        runs.setdefault(variant, {})[seed] = row
    return runs


def interval(differences: list[float]) -> tuple[float, float, float]:
    """(mean, low, high): the 95 % confidence interval of a mean, by Student's t."""
    from scipy import stats

    mean, n = statistics.mean(differences), len(differences)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5
    return mean, mean - half, mean + half


def minus_plain(runs: Runs) -> dict[str, tuple[float, float, float]]:
    """The interval of each variant's accuracy minus that of the plain student of the same seed."""
    plain, found = runs["plain"], {}
    for variant, own in runs.items():
        paired = [row["accuracy"] - plain[seed]["accuracy"] for seed, row in own.items() if seed in plain]
        if variant != "plain" and len(paired) > 1:
            found[variant] = interval(paired)
    return found


def shares(own: dict[int, Row]) -> dict[str, float]:
    """Each term's share of the gradient in the last epoch, its mean over the seeds that logged it."""
    logged = [{k[5:]: v for k, v in row.items() if k.startswith("grad_")} for row in own.values()]
    logged = [row for row in logged if row]
    return {term: statistics.mean(row[term] for row in logged) for term in (logged[0] if logged else {})}


def accuracy_table(rows: list[Row]) -> str:
    runs = newest(rows)
    plain, differences, lines = runs["plain"], minus_plain(runs), []
    for variant, own in runs.items():
        accuracies = [r["accuracy"] for r in own.values()]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(own) > 1 else ""
        told = "-"
        if variant in differences:
            mean, low, high = differences[variant]
            told = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" + ("" if low > 0 or high < 0 else ", not separated")
        terms = ", ".join(f"{term} {100 * share:.3g} %" for term, share in shares(own).items())
        means = [f"{statistics.mean(r[k] for r in own.values()):.3g}" for k in ("mean_norm", "effective_rank", "gap")]
        name = variant if len(own) == len(plain) else f"{variant} ({len(own)} of {len(plain)} seeds)"
        lines.append([name, f"{statistics.mean(accuracies):.2f}{spread}", told, terms, *means])
    one = next(iter(plain.values()))
    head = ["variant", "test accuracy, %", "minus plain, paired [95 %]", "gradient shares, last epoch"]
    told = (
        f"{one['student']}, {one['images']:,} CIFAR-100 images, {one['epochs']} epochs, {len(plain)} seeds; "
        f"teacher {one['teacher']}, {one['teacher_accuracy']:.2f} %. "
        f"Features of test images: norm of the mean, effective rank of 256, same-class minus other-class cosine. "
        f"{where(row for own in runs.values() for row in own.values())}. `python -m bench accuracy`."
    )
    return table([*head, "mean norm", "rank", "gap"], lines) + f"\n{told}\n"


def accuracy_line(rows: list[Row]) -> str:
    """Which variants are above, below and not separated from the plain student."""
    runs = newest(rows)
    found: dict[str, list[str]] = {"Above": [], "Below": [], "Not separated": []}
    for variant, (_, low, high) in minus_plain(runs).items():
        found["Above" if low > 0 else "Below" if high < 0 else "Not separated"].append(variant)
    told = ". ".join(f"{what}: {'; '.join(variants)}" for what, variants in found.items() if variants)
    one = next(iter(runs["plain"].values()))
    return paragraph(
        f"- **Against the plain student** on [a small budget](paper.md#what-it-does-on-a-small-budget), "
        f"{one['images']:,} CIFAR-100 images, {one['epochs']} epochs, {len(runs['plain'])} paired seeds. {told}."
    )


def lckt_share(rows: list[Row]) -> str:
    """How much of the gradient LCKT is at its published weight, and as a sum over the batch."""
    runs = newest(rows)
    mean, total = (f"{100 * shares(runs[f'LCKT {how}'])['lckt']:.2g} %" for how in ("mean", "sum"))
    return paragraph(
        f"- **LCKT at the published weight** (0.05, plan of mass 1) is {mean} of the gradient beside the cross "
        f'entropy\'s, and {total} with `lckt_reduction="sum"`, which multiplies it by the batch size (same runs, '
        "last epoch). "
        "`--log-grad-norms` logs every term's share in `metrics.csv`."
    )
