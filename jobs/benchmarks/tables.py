"""The tables of the benchmarks: what was asked for and what was measured."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from jobs.benchmarks.results import Row, markdown, met, number, provenance, read

HEADLINE = 8  # permutations at which times are compared
LAST_BLOCK = "layer3.2.conv1"
OWN, PLAIN, LOOP = "shapray", "plain antithetic", "shared permutations"
HYBRID, LOW = "shapray, hybrid", "shapray, bfloat16"


class Rows:
    """Rows of one group of the estimators benchmark."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.largest = max(row["n_images"] for row in rows)
        self.smallest = min(row["n_images"] for row in rows)
        own = [row["permutations"] for row in rows if row["method"] == OWN]
        self.budgets = sorted(set(own))
        self.headline = HEADLINE if HEADLINE in own else self.budgets[-1]

    def take(self, method: str, permutations: int | None, n_images: int) -> list[Row]:
        return [
            row
            for row in self.rows
            if row["method"] == method
            and row["n_images"] == n_images
            and permutations in (None, row["permutations"])
        ]

    def error(self, method: str, permutations: int, n_images: int, key: str = "error") -> float:
        """Mean over the seeds, the reference's own error subtracted."""
        rows = self.take(method, permutations, n_images)
        return float(np.mean([row[key] - row["reference_error"] for row in rows]))

    def seconds(self, method: str, permutations: int, n_images: int) -> float:
        rows = self.take(method, permutations, n_images)
        return float(np.median([row["seconds"] for row in rows]))

    def error_of_one(self, method: str, key: str = "error") -> float:
        """c of error = c / permutations, which holds for means of independent draws."""
        rows = self.take(method, None, self.largest)
        if method == LOOP:
            rows = [row for row in rows if row["permutations"] == 1]
        scaled = [row["permutations"] * (row[key] - row["reference_error"]) for row in rows]
        return float(np.mean(scaled))

    def best_peer(self, budget: int, key: str) -> tuple[float, str]:
        """Error of this package over the best other's, at equal evaluations and images."""
        n_images = self.smallest
        others = {
            method: self.error(method, budget, n_images, key)
            for method in {row["method"] for row in self.rows} - {OWN, PLAIN, HYBRID, LOW}
            if self.take(method, budget, n_images)
            # permutations shared by the images do not err independently
            and (key == "error" or method != LOOP)
        }
        best = min(others, key=lambda method: others[method])
        return self.error(OWN, budget, n_images, key) / others[best], best


def _groups(rows: Iterable[Row]) -> list[list[Row]]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["network"], row["group"]), []).append(row)
    return [found[key] for key in sorted(found, key=lambda k: (k[0] != "resnet20", k))]


def _asked(
    row: Row, measured: float, asked: Callable[[str], float], *, at_least: bool = True
) -> str:
    """Targets are set for ResNet-20."""
    if row["network"] != "resnet20":
        return number(measured)
    return met(measured, asked(row["group"]), at_least=at_least)


def estimators(path: Path) -> str:
    """Markdown: times against the loop, evaluations with and without surrogate, the peers."""
    groups = [Rows(rows) for rows in _groups(read(path))]
    return "\n\n".join([provenance(path), _times(groups), _evaluations(groups), _peers(groups)])


def _times(groups: list[Rows]) -> str:
    lines = []
    for rows in groups:
        first, n, budget = rows.rows[0], rows.largest, rows.headline
        own_error = rows.error(OWN, budget, n)
        own_seconds = rows.seconds(OWN, budget, n)
        per_permutation = rows.seconds(LOOP, 1, n)
        one = rows.error_of_one(LOOP)
        needed = one / own_error
        fit = [
            f"{p}: {p * rows.error(LOOP, p, n) / one:.2f}"
            for p in (2, 4, 8, 16)
            if rows.take(LOOP, p, n)
        ]
        ratio = needed * per_permutation / own_seconds
        low_ratio = ""
        if rows.take(LOW, budget, n):
            low_seconds = rows.seconds(LOW, budget, n)
            low_ratio = number(one / rows.error(LOW, budget, n) * per_permutation / low_seconds)
        lines.append(
            [
                f"{first['network']} {first['group']}",
                f"{first['n_units']}",
                f"{n} ({first['reference_exact']})",
                number(first["reference_error"] / own_error),
                number(own_error),
                number(own_seconds),
                number(per_permutation),
                number(needed),
                ", ".join(fit),
                _asked(first, ratio, lambda g: 150 if fnmatch(g, "layer3.*") else 40),
                low_ratio,
            ]
        )
    return (
        f"Time for the shared-permutation loop to reach this package's error, over this package's "
        f"time, at {HEADLINE} permutations per image, both in float32. The loop's error is c / P "
        "for P permutations, as they are independent draws; c is measured on single ones, and the "
        "column *fit* shows P × error / c of means of P of them, which should be 1. The bfloat16 "
        "ratio is this package in bfloat16 against the loop in float32; it is left out where the "
        "machine has no bfloat16.\n\n"
        + markdown(
            [
                "group",
                "units",
                "images (exact)",
                "reference's error ÷ own",
                "error",
                "seconds",
                "loop: s / permutation",
                "loop: permutations needed",
                "fit",
                "ratio of times (asked)",
                "in bfloat16",
            ],
            lines,
        )
    )


def _evaluations(groups: list[Rows]) -> str:
    budgets = sorted({b for rows in groups for b in rows.budgets if b > 2})
    lines = []
    for rows in groups:
        first, n = rows.rows[0], rows.largest
        one = rows.error_of_one(PLAIN, "independent_error")
        cells = []
        for budget in budgets:
            ratio = one / budget / rows.error(OWN, budget, n, "independent_error")
            cells.append(_asked(first, ratio, lambda group: 6 if group == LAST_BLOCK else 1.2))
        lines.append([f"{first['network']} {first['group']}", *cells])
    return (
        "Evaluations that plain antithetic permutations need for the error that this package "
        f"reaches, over its own (error of the plain ones: c / P, c from {HEADLINE} of them). "
        "Errors are averaged image by image, which is the same for estimates that are unbiased and "
        "independent, and steadier. Two permutations are a single pair, from which nothing is "
        "fitted.\n\n" + markdown(["group", *(f"{b} permutations (asked)" for b in budgets)], lines)
    )


def _peers(groups: list[Rows]) -> str:
    lines = []
    for rows in groups:
        first = rows.rows[0]
        cells = []
        for budget in rows.budgets:
            ratio, best = rows.best_peer(budget, "error")
            steady, steady_best = rows.best_peer(budget, "independent_error")
            names = best if best == steady_best else f"{best}; {steady_best}"
            cells.append(f"{met(ratio, 1, at_least=False)}, {number(steady)} [{names}]")
        lines.append([f"{first['network']} {first['group']}", f"{rows.smallest}", *cells])
    budgets = groups[0].budgets
    return (
        "Error of this package over the best other estimator's, at equal evaluations on the same "
        "images: of the averaged scores (asked: never above 1), then the same with errors averaged "
        "image by image, which is steadier and flatters biased estimators. In brackets which other "
        "was best.\n\n"
        + markdown(["group", "images", *(f"{b} permutations" for b in budgets)], lines)
    )


def throughput(path: Path) -> str:
    """Markdown: coalitions/s, all subsets, memory, bfloat16; a line per group."""
    lines = []
    for rows in _groups(read(path)):
        found = {(row["what"], row["precision"]): row for row in rows}
        first = rows[0]
        pairs = [_pairs(found.get(("pairs", p)), p) for p in ("float32", "bfloat16")]
        subsets = found.get(("subsets", "float32"))
        memory = found.get(("memory", "float32"))
        precision_row = found.get(("precision", "bfloat16"))
        lines.append(
            [
                f"{first['network']} {first['group']}",
                *(cell for pair in pairs for cell in pair),
                met(1 / subsets["ratio"], 1.1, at_least=False) if subsets else "",
                met(memory["peak"] / memory["bound"], 1, at_least=False) if memory else "",
                f"{number(precision_row['median_difference'])}; "
                f"{met(precision_row['rms_difference'], 0.1, at_least=False)}; "
                + met(precision_row["max_difference"], 0.1, at_least=False)
                if precision_row
                else "",
            ]
        )
    return (
        provenance(path)
        + "\n\nIn brackets what was asked for; bold where it is missed. *2^16* is the time of all "
        "coalitions of one image over that of a plain forward of 65,536 rows.\n\n"
        + markdown(
            [
                "group",
                "float32: coalitions/s",
                "÷ plain forward (asked)",
                "bfloat16: coalitions/s",
                "÷ plain forward (asked)",
                "2^16 (asked)",
                "peak memory ÷ bound (asked)",
                "bfloat16 − float32 ÷ standard error: "
                "median unit; root mean square (asked); largest unit (asked)",
            ],
            lines,
        )
    )


def _pairs(row: Row | None, precision: str) -> tuple[str, str]:
    if row is None:
        return "", ""
    last = row["group"] == LAST_BLOCK and precision == "float32"
    asked = 3 if last else 0.9
    return number(row["rows_per_second"]), _asked(row, row["ratio"], lambda _: asked)
