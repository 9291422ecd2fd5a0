"""Tables and sentences of the pages from `python -m bench accuracy`: paired differences, the terms' gradients."""

from __future__ import annotations

import statistics

from bench.accuracy_variants import TUNED
from bench.report_lines import paragraph
from bench.report_tables import Row, latest, table, where
from wcord_fast.train.estimates import LEAST_SEEDS, Estimate, difference_text, estimate, mean_text, paired

Runs = dict[str, dict[int, Row]]  # variant -> seed -> row
SETTING = ("data", "teacher", "teacher_accuracy", "student", "images", "epochs", "precision")
REFERENCES = ("plain", "KD", "CRD", "GCKT nce_sn", "WCoRD")
SUMMARY = {
    **{"plain": "plain", "KD": "KD", "CRD": "CRD", "WCoRD": "WCoRD, `paper`", TUNED: "WCoRD, `tuned`"},
    f"{TUNED}+KD": "WCoRD, `tuned`, and KD",
}


def newest(rows: list[Row]) -> Runs:
    """The rows of the last setting in the file."""
    last = tuple(rows[-1].get(key) for key in SETTING)
    of_setting = [r for r in rows if tuple(r.get(key) for key in SETTING) == last]
    runs: Runs = {}
    for (variant, seed), row in latest(of_setting, "variant", "seed").items():
        runs.setdefault(variant, {})[seed] = row
    return runs


def accuracies(own: dict[int, Row]) -> Estimate:
    return estimate([row["accuracy"] for row in own.values()])


def difference(runs: Runs, variant: str, reference: str) -> Estimate | None:
    """Accuracy of `variant` minus that of `reference`, paired by seed; None if no seed has both."""
    ours, others = ({seed: row["accuracy"] for seed, row in runs[name].items()} for name in (variant, reference))
    return paired(ours, others)


def accuracy_text(own: dict[int, Row]) -> str:
    return mean_text(accuracies(own))


def gradient_fractions(own: dict[int, Row]) -> dict[str, float]:
    """Each term's share of the gradient in the last epoch, its mean over the seeds that logged it."""
    logged = [{k[5:]: v for k, v in row.items() if k.startswith("grad_")} for row in own.values()]
    logged = [row for row in logged if row]
    return {term: statistics.mean(row[term] for row in logged) for term in (logged[0] if logged else {})}


def accuracy_table(rows: list[Row]) -> str:
    """A line per variant: accuracy, gradient shares, collapse measures, and the difference to the first of `REFERENCES`
    that has rows."""
    runs, lines = newest(rows), []
    reference = next(name for name in REFERENCES if name in runs)
    measures = [k for k in MEASURES if any(k in row for own in runs.values() for row in own.values())]
    for variant, own in runs.items():
        gain = "-" if variant == reference else difference_text(difference(runs, variant, reference))
        terms = ", ".join(f"{term} {100 * fraction:.3g} %" for term, fraction in gradient_fractions(own).items())
        means = [[row[k] for row in own.values() if k in row] for k in measures]
        cells = [f"{statistics.mean(values):.3g}" if values else "-" for values in means]
        lines.append([title(runs, variant), accuracy_text(own), gain, terms, *cells])
    head = ["variant", "test accuracy, %", f"minus {reference}, paired", "gradient shares, last epoch"]
    note = (
        f"{setting(runs)}; [95 % intervals]. "
        "Shares of the gradient at the penultimate feature: a loss of earlier maps alone has none there. "
        "Features of test images: norm of the mean, effective rank of 256, same-class minus other-class cosine. "
        f"{where(row for own in runs.values() for row in own.values())}. `python -m bench accuracy`."
    )
    return table([*head, *(MEASURES[k] for k in measures)], lines) + f"\n{note}\n"


MEASURES = {"mean_norm": "mean norm", "effective_rank": "rank", "gap": "gap", "lckt_on_pairs": "plan on the pairs"}


def differences_table(rows: list[Row]) -> str:
    """Each variant minus each of the references: paired differences with their intervals."""
    runs = newest(rows)
    references = [name for name in REFERENCES if name in runs]
    lines = [
        [title(runs, v), *("-" if v == r else difference_text(difference(runs, v, r)) for r in references)]
        for v in sorted(runs, key=lambda variant: -accuracies(runs[variant]).mean)
    ]
    note = (
        f"Percentage points of test accuracy between runs of equal seed [95 % interval, paired t]; {setting(runs)}. "
        f"Not separated: the interval holds zero, or there are fewer than {LEAST_SEEDS} pairs."
    )
    return table(["variant", *(f"minus {name}" for name in references)], lines) + f"\n{note}\n"


def summary_table(*settings: list[Row]) -> str:
    """The accuracies of a few methods, a column per file of rows, and the preset "tuned" minus KD and minus "paper"."""
    columns = [newest(rows) for rows in settings]
    lines = [
        [name, *(accuracy_text(runs[variant]) if variant in runs else "-" for runs in columns)]
        for variant, name in SUMMARY.items()
    ]
    for reference, name in {"KD": "KD", "WCoRD": "`paper`"}.items():
        gains = (difference_text(difference(runs, TUNED, reference)) if reference in runs else "-" for runs in columns)
        lines.append([f"`tuned` minus {name}", *gains])
    heads = []
    for runs in columns:
        one = first(runs)
        heads.append(f"{one['student']} of a {one['teacher']} ({one['teacher_accuracy']:.1f} %), {budget(runs)}")
    note = (
        f"Means over the seeds [95 % intervals, from {LEAST_SEEDS} seeds on]. "
        f"{where(row for rows in settings for row in rows)}. `python -m bench accuracy`."
    )
    return table(["test accuracy, %", *heads], lines) + f"\n{note}\n"


def accuracy_line(rows: list[Row]) -> str:
    """The variants above, below and not separated from the plain student, as a sentence."""
    runs = newest(rows)
    groups: dict[str, list[str]] = {"Above": [], "Below": [], "Not separated": []}
    for variant in runs:
        gain = difference(runs, variant, "plain")
        if variant != "plain" and gain is not None:
            side = ("Above" if gain.mean > 0 else "Below") if gain.separated else "Not separated"
            groups[side].append(variant)
    sentences = ". ".join(f"{side}: {'; '.join(variants)}" for side, variants in groups.items() if variants)
    return paragraph(
        f"- **Against the plain student** on [a small budget](paper.md#what-it-does-on-a-small-budget), "
        f"{budget(runs)}, {seeds(runs)} paired seeds. {sentences}."
    )


def tuned_line(rows: list[Row]) -> str:
    """The difference between the preset "tuned" and each reference, as a sentence."""
    runs = newest(rows)
    references = [name for name in REFERENCES if name in runs]
    against = [f"{name} {difference_text(difference(runs, TUNED, name))}" for name in references]
    return paragraph(
        f"- **`--wcord.preset tuned`** (filled banks, a ramp, known pairs) has {accuracy_text(runs[TUNED])} % "
        f"({budget(runs)}, {count(len(runs[TUNED]), 'seed')}); minus {'; minus '.join(against)} "
        f"([tables](paper.md#banks-schedules-and-known-pairs))."
    )


def local_line(rows: list[Row]) -> str:
    """What the preset "tuned" has beyond its local term alone, without KD and with it, as a sentence."""
    runs, sentences = newest(rows), []
    for name in ("LCKT only", "LCKT prior 0.99"):
        alone, with_kd = (difference(runs, TUNED + kd, f"{name}, weight 10{kd}") for kd in ("", "+KD"))
        texts = f"{difference_text(alone)}; both with KD: {difference_text(with_kd)}"
        sentences.append(f"`tuned` minus `{name}` of the same weight: {texts}.")
    return paragraph(f"{' '.join(sentences)} Percentage points, paired by seed.")


def lckt_share(rows: list[Row]) -> str:
    """LCKT's fraction of the gradient at its published weight, and as a sum over the batch."""
    runs = newest(rows)
    mean, total = (
        f"{100 * gradient_fractions(runs[f'LCKT {reduction}'])['lckt']:.2g} %" for reduction in ("mean", "sum")
    )
    return paragraph(
        f"- **LCKT at the published weight** (0.05, plan of mass 1) is {mean} of the gradient beside the cross "
        f'entropy\'s, and {total} with `lckt_reduction="sum"`, which multiplies it by the batch size (same runs, '
        "last epoch). "
        "`--log-grad-norms` logs every term's share in `metrics.csv`."
    )


def title(runs: Runs, variant: str) -> str:
    """A variant's name in a table, with its preset and, if it has not the seeds that the table names, their number."""
    name = f"{variant} (preset tuned)" if variant == TUNED else variant
    own, of_table = len(runs[variant]), seeds(runs)
    if own == of_table:
        return name
    return f"{name} ({own} of {count(of_table, 'seed')})" if own < of_table else f"{name} ({count(own, 'seed')})"


def seeds(runs: Runs) -> int:
    """The number of seeds of the plain student or, without one, of the variant that has most."""
    return len(runs["plain"]) if "plain" in runs else max(map(len, runs.values()))


def first(runs: Runs) -> Row:
    """Any row: all are of one setting."""
    return next(iter(next(iter(runs.values())).values()))


def budget(runs: Runs) -> str:
    one = first(runs)
    data = {"cifar100": "CIFAR-100 images", "digits": "digits"}[one.get("data", "cifar100")]
    return f"{one['images']:,} {data}, {one['epochs']} epochs"


def setting(runs: Runs) -> str:
    """The setting that all runs of a table share."""
    one = first(runs)
    teacher = f"teacher {one['teacher']}, {one['teacher_accuracy']:.2f} %"
    return f"{one['student']}, {budget(runs)}, {count(seeds(runs), 'seed')}; {teacher}"


def count(number: int, noun: str) -> str:
    """A number and its noun: "1 seed", "3 seeds"."""
    return f"{number} {noun}" + ("s" if number != 1 else "")
