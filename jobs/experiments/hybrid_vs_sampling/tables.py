"""The experiment's tables, in Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np

from jobs.benchmarks.results import markdown
from jobs.experiments.hybrid_vs_sampling.compare import Paired, differences, paired
from jobs.experiments.hybrid_vs_sampling.cuts import REPAIRED_RANKING, Row
from jobs.experiments.hybrid_vs_sampling.danger import BINS
from jobs.experiments.hybrid_vs_sampling.networks import PLANS

RIVALS = ("random", "sampling", "sampling_equal_evaluations")
REPAIRS = {"none": "no", "least_squares": "yes"}
SAMPLERS = ("plain", "package")


def everything(cuts: Sequence[Row], dangers: Sequence[Row]) -> dict[str, str]:
    """Name -> table, of what there are results of."""
    return {
        "overall": overall(cuts),
        "settings": settings(cuts),
        "danger": danger(dangers),
    }


def overall(rows: Sequence[Row]) -> str:
    """One line per network, sampler, ranking and repair, all settings of a seed averaged."""
    lines = []
    for name in PLANS:
        for repair, repaired in REPAIRS.items():
            for ranking in ("mean_abs", "mean"):
                for sampler in SAMPLERS:
                    part = [
                        row
                        for row in rows
                        if row["network"] == name
                        and row["repair"] == repair
                        and (
                            row["method"] == "random"
                            or (row["ranking"], row["sampler"]) == (ranking, sampler)
                        )
                    ]
                    if all(row["method"] == "random" for row in part):
                        continue
                    of_hybrid = [row for row in part if row["method"] == "hybrid"]
                    lines.append(
                        [
                            name,
                            repaired,
                            ranking,
                            sampler,
                            str(len({row["seed"] for row in part})),
                            f"{_of(part, 'hybrid', 'top1'):.1%}",
                            *(_difference(part, rival, "top1") for rival in RIVALS),
                            *(_difference(part, rival, "loss") for rival in RIVALS),
                            f"{np.mean([row['exact_share'] for row in of_hybrid]):.0%}",
                            _ratio_of_evaluations(part),
                        ]
                    )
    header = [
        "network",
        "repaired",
        "rank by",
        "sampler",
        "seeds",
        "hybrid's accuracy",
        *(f"accuracy: hybrid − {_words(rival)}" for rival in RIVALS),
        *(f"loss (nats): {_words(rival)} − hybrid" for rival in RIVALS),
        "exact",
        "evaluations, sampling ÷ hybrid",
    ]
    return markdown(header, lines)


def settings(rows: Sequence[Row]) -> str:
    """A line per network, number of images and price, for the thesis' own sampler."""
    lines = []
    for name, plan in PLANS.items():
        for n_images in plan.n_images:
            for permutations in plan.permutations:
                for repair, repaired in REPAIRS.items():
                    part = [
                        row
                        for row in rows
                        if (row["network"], row["n_images"]) == (name, n_images)
                        and (row["repair"], row["share"]) == (repair, plan.shares[0])
                        and (
                            row["method"] == "random"
                            or (row["ranking"], row["sampler"], row["permutations"])
                            == (REPAIRED_RANKING, "plain", permutations)
                        )
                    ]
                    if part:
                        lines.append(
                            [
                                name,
                                str(n_images),
                                str(permutations),
                                repaired,
                                *(f"{_of(part, m, 'top1'):.1%}" for m in ("hybrid", *RIVALS)),
                                *(_difference(part, rival, "top1") for rival in RIVALS),
                            ]
                        )
    header = ["network", "images", "permutations", "repaired", "hybrid"]
    header += [_words(rival) for rival in RIVALS]
    return markdown(header + [f"hybrid − {_words(rival)}" for rival in RIVALS], lines)


def danger(rows: Sequence[Row]) -> str:
    """A line per network, set of active units and number of images."""
    lines = []
    rows = [row for row in rows if row["ranking"] == REPAIRED_RANKING]
    sets = dict.fromkeys(
        (row["network"], bin_of(row), row["n_images"]) for row in sorted(rows, key=_order)
    )
    prices = sorted({(row["sampler"], row["permutations"]) for row in rows}, key=_price)
    for key in sets:
        part = [row for row in rows if (row["network"], bin_of(row), row["n_images"]) == key]
        by_price = [
            [row for row in part if (row["sampler"], row["permutations"]) == price]
            for price in prices
        ]
        lines.append(
            [
                key[0],
                key[1],
                str(key[2]),
                str(len({row["group"] for row in part})),
                *(_share(found, "wrong_by_sampling") for found in by_price),
                _share(part, "wrong_by_images"),
                *(
                    _share(found, "excess_sampled")
                    for price, found in zip(prices, by_price)
                    if price[0] == "plain"
                ),
                _share(part, "excess_exact"),
            ]
        )
    header = ["network", "active units", "images", "groups"]
    header += [f"cut wrongly: {sampler}, {n} permutations" for sampler, n in prices]
    header += ["cut wrongly: other images, exact"]
    header += [f"excess: {n} permutations" for sampler, n in prices if sampler == "plain"]
    return markdown([*header, "excess: exact"], lines)


def _difference(rows: Sequence[Row], rival: str, metric: str) -> str:
    """How much better the hybrid is, with interval, p and effect; empty without that rival."""
    if not any(row["method"] == rival for row in rows):
        return ""
    by_seed = differences(rows, "hybrid", rival, metric)
    if metric == "loss":
        return said(paired([-found for found in by_seed.values()]), "+.3f", 1)
    return said(paired(list(by_seed.values())), "+.1f", 100)


def said(found: Paired, form: str, times: int) -> str:
    """A difference with its interval, p and effect."""
    mean, low, high = (format(times * value, form) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}], p {found.p:.2g}, d {found.effect:.1f}"


def _ratio_of_evaluations(rows: Sequence[Row]) -> str:
    if not any(row["method"] == "sampling_equal_evaluations" for row in rows):
        return ""
    of_sampling = _of(rows, "sampling_equal_evaluations", "evaluations")
    return f"{of_sampling / _of(rows, 'hybrid', 'evaluations'):.2f}"


def _words(method: str) -> str:
    return {
        "random": "random",
        "sampling": "sampling",
        "sampling_equal_evaluations": "sampling, equal evaluations",
    }[method]


def _of(rows: Iterable[Row], method: str, key: str) -> float:
    return float(np.mean([row[key] for row in rows if row["method"] == method]))


def _share(rows: Sequence[Row], key: str) -> str:
    return f"{np.mean([row[key] for row in rows]):.1%}" if rows else ""


def bin_of(row: Row) -> str:
    """The set that a row's images are of, as BINS has it."""
    [(low, high)] = [ends for ends in BINS if ends[0] <= row["most_active"] <= ends[1]]
    return f"{low}–{high}"


def _order(row: Row) -> tuple[int, int, int]:
    """Sets of one bin are together, whatever the least and the most in each group's."""
    place = [ends[1] >= row["most_active"] for ends in BINS].index(True)
    return list(PLANS).index(row["network"]), place, row["n_images"]


def _price(price: tuple[str, int]) -> tuple[int, int]:
    return SAMPLERS.index(price[0]), price[1]
