"""Forms of one computation on one case, side by side: gate against float64, memory, times, ratios, and their table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench.measure import interleaved, peak_megabytes

BASES = ("naive", "plain")  # forms that others are compared with
Row = dict[str, Any]
Errors = dict[str, float]


class Form(Protocol):
    """One way to compute it, with its own copy of all that a step changes."""

    def step(self) -> Any: ...


@dataclass
class Contest:
    """A comparison: makers of the forms, each form's errors, and the errors that are accepted."""

    sizes: Row  # of the case, for the rows
    forms: dict[str, Callable[[], Form]]
    errors: Callable[[Any], Errors]  # of a form that was just made; takes a step
    right: Callable[[dict[str, Errors]], dict[str, bool]]
    theirs: tuple[str, ...] = (*BASES, "compile")  # forms that may be wrong or fail without a bad exit
    floor: Callable[[], float] | None = None  # milliseconds; measured before and after the forms are timed
    notes: Row = field(default_factory=dict)

    def title(self) -> str:
        return ", ".join(
            f"{key} {value:,}" if isinstance(value, int) else str(value) for key, value in self.sizes.items()
        )


def measure(contest: Contest, repeats: int, clock: str = "wall") -> list[Row]:
    """One row per form. One that cannot be made or run here has `failed` in place of numbers."""
    forms: dict[str, Form] = {}
    failed: dict[str, str] = {}
    error: dict[str, Errors] = {}
    for name, make in contest.forms.items():
        try:
            form = make()
            error[name] = contest.errors(form)
            forms[name] = form
        except Exception as e:  # a missing compiler must not lose the other forms' numbers
            failed[name] = f"{type(e).__name__}: {e}".split("\n")[0][:300]
    right = contest.right(error)
    memory = {name: peak_megabytes(form.step) for name, form in forms.items()}
    floors = [contest.floor()] if contest.floor else []
    times = interleaved({name: form.step for name, form in forms.items()}, repeats, clock)
    floors += [contest.floor()] if contest.floor else []
    rows = []
    for name in contest.forms:
        row = {**contest.sizes, **contest.notes, "form": name, "clock": clock}
        if name in failed:
            rows.append(row | {"right": False, "failed": failed[name]})
            continue
        t = times[name]
        row |= {"ms": t, "error": error[name], "right": right[name], "peak_mb": memory[name]}
        if floors and t["p50"] > 0:
            row |= {"floor_ms": round(min(floors), 4), "percent_of_floor": round(100 * min(floors) / t["p50"], 1)}
        for base in BASES:
            if base in times and base != name and right[name] and right[base] and t["p50"] > 0:
                row[f"times_{base}"] = round(times[base]["p50"] / t["p50"], 2)
        rows.append(row)
    return rows


def fine(contest: Contest, rows: list[Row]) -> bool:
    """Whether every form of ours is right."""
    return all(row["right"] or row["form"] in contest.theirs for row in rows)


def show(contest: Contest, rows: list[Row]) -> None:
    """One table: a line per form."""
    bases = [b for b in BASES if b in contest.forms]
    print(f"\n{contest.title()}")
    head = f"{'form':<20}{rows[0]['clock'] + ' ms: p50 (p20-p80)':>30}{'':>2}"
    print(head + "".join(f"{'x ' + b:>9}" for b in bases) + f"{'peak MB':>9}{'of floor':>10}  error")
    for row in rows:
        if "failed" in row:
            print(f"{row['form']:<20}  fails: {row['failed']}")
            continue
        t = row["ms"]
        time = f"{t['p50']:.3f} ({t['p20']:.3f}-{t['p80']:.3f})"
        ratios = "".join(f"{f'{row[key]:.1f}' if (key := f'times_{b}') in row else '-':>9}" for b in bases)
        floor = f"{row['percent_of_floor']:.0f} %" if "percent_of_floor" in row else "-"
        errors = ", ".join(f"{name} {e:.0e}" for name, e in row["error"].items())
        wrong = "" if row["right"] else "  WRONG"
        print(f"{row['form']:<20}{time:>30}{'':>2}{ratios}{row['peak_mb']:>9.1f}{floor:>10}  {errors}{wrong}")
    print(end="", flush=True)


def run(contests: Any, repeats: int, clock: str) -> tuple[list[Row], bool]:
    """Measure and show contest after contest: (all rows, whether ours is right in all)."""
    result, right = [], True
    for contest in contests:
        rows = measure(contest, repeats, clock)
        show(contest, rows)
        right &= fine(contest, rows)
        result += rows
    return result, right
