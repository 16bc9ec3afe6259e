"""Networks of one size compared on the same draws and images: means, differences, intervals."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jobs.benchmarks.results import Row, markdown, provenance, read

PER_NAT = 100  # losses of single images are kept in hundredths
DEFAULT = "obs & mean_abs"  # what `rank_by: auto` is here
REPAIRED = "mean_abs"  # whose cuts are repaired otherwise, too
OWN = "least_squares"
RESAMPLES = 4000
Images = dict[int, np.ndarray]  # draw -> (n_images,) float64


def packed(hits: np.ndarray, losses: np.ndarray) -> Row:
    """Of every image, small: a bit for a hit, two bytes for the loss in nats."""
    hundredths = np.clip(np.round(losses * PER_NAT), 0, np.iinfo(np.uint16).max)
    return {
        "n_images": len(hits),
        "hits": np.packbits(hits).tobytes(),
        "losses": hundredths.astype("<u2").tobytes(),
    }


@dataclass
class Line:
    """One way to a network, on all draws that it was measured on; of several seeds the mean.

    Attributes:
        name: of the criterion, with that of the repair where it is not our own.
        rows: of the results.
    """

    name: str
    rows: list[Row] = field(default_factory=list)

    @property
    def draws(self) -> list[int]:
        return sorted({row["draw"] for row in self.rows})

    def mean(self, key: str, draws: Iterable[int] | None = None) -> float:
        """Over the draws, each with the mean of its seeds."""
        of_draw = defaultdict(list)
        for row in self.rows:
            of_draw[row["draw"]].append(row[key])
        return float(np.mean([np.mean(of_draw[d]) for d in (draws or self.draws)]))

    def hits(self) -> Images:
        return self._by_draw(
            lambda row: np.unpackbits(np.frombuffer(row["hits"], np.uint8))[: row["n_images"]]
        )

    def losses(self) -> Images:
        return self._by_draw(lambda row: np.frombuffer(row["losses"], "<u2") / PER_NAT)

    def _by_draw(self, of_row: Callable[[Row], np.ndarray]) -> Images:
        found = defaultdict(list)
        for row in self.rows:
            found[row["draw"]].append(of_row(row).astype(np.float64))
        return {draw: np.mean(parts, axis=0) for draw, parts in found.items()}


@dataclass(frozen=True)
class Difference:
    """One line less another on the draws that both have, and its 95 % interval."""

    mean: float
    low: float
    high: float

    def text(self, factor: float = 1.0, digits: int = 2) -> str:
        mean, low, high = (
            f"{factor * value:+.{digits}f}" for value in (self.mean, self.low, self.high)
        )
        clear = self.low > 0 or self.high < 0
        return f"{f'**{mean}**' if clear else mean} [{low}, {high}]"


def difference(a: Images, b: Images) -> Difference | None:
    """Paired bootstrap over draws and images at once: every resample takes some draws and some
    images, the same for both, and the interval holds the middle 95 % of the resamples' means.

    Of D draws D - 1 are taken, which makes the variance of their mean come out right: with D it
    would be too small by (D - 1) / D. A single draw is not resampled: its interval is of the images
    alone.

    Returns:
        None where no draw is in both.
    """
    draws = sorted(a.keys() & b.keys())
    if not draws:
        return None
    apart = np.stack([a[draw] - b[draw] for draw in draws])  # (n_draws, n_images)
    of_draws, of_images = _resamples(*apart.shape)
    means = ((of_draws @ apart) * of_images).sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(apart.mean()), float(low), float(high))


@functools.cache
def _resamples(n_draws: int, n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights that sum to one: (RESAMPLES, n_draws) and (RESAMPLES, n_images)."""
    random, taken = np.random.default_rng(0), max(1, n_draws - 1)
    of_draws = random.multinomial(taken, np.full(n_draws, 1 / n_draws), RESAMPLES) / taken
    of_images = random.multinomial(n_images, np.full(n_images, 1 / n_images), RESAMPLES) / n_images
    return of_draws, of_images


def lines(rows: Iterable[Row], repair: str | None = None) -> dict[str, Line]:
    """Of one network and share.

    Args:
        repair: criteria with this repair; None: criteria and repairs.
    """
    found: dict[str, Line] = {}
    for row in rows:
        if repair in (None, row["repair"]):
            criterion = row["criterion"].partition("-")[0]  # seeds of a random one are one line
            name = criterion if repair else f"{criterion}: {row['repair']}"
            if row["allocation"] == "grail":
                name += " (own cut)"
            found.setdefault(name, Line(name)).rows.append(row)
    return found


def by_size(rows: Iterable[Row]) -> Mapping[tuple[str, float], list[Row]]:
    """(network, share) -> rows; whole networks have the share 1."""
    found = defaultdict(list)
    for row in rows:
        found[row["network"], row["share"]].append(row)
    return dict(sorted(found.items()))


def curves(rows: list[Row]) -> dict[str, list[dict[str, float]]]:
    """Of one network: what is drawn, a point per share that all draws' default was measured at.

    Returns:
        name -> per share, multiply-adds, accuracy and loss; "best other" and "GRAIL" say after a
        colon which one it is: that with the best mean accuracy.
    """
    by_share = {share: part for (_, share), part in by_size(rows).items() if share < 1}
    own = [lines(part, OWN) for part in by_share.values()]
    every = [lines(part) for part in by_share.values()]

    def best(of_share: list[dict[str, Line]], wanted: Callable[[str], bool]) -> str | None:
        names = [name for name in of_share[0] if wanted(name) and all(name in f for f in of_share)]
        most = max((len(of_share[0][name].draws) for name in names), default=0)
        names = [name for name in names if len(of_share[0][name].draws) == most]
        return max(names, key=lambda n: sum(f[n].mean("top1") for f in of_share), default=None)

    other = best(own, lambda name: name not in (DEFAULT, "random"))
    grail = best(every, lambda name: name.startswith(f"{REPAIRED}: grail"))
    chosen = {
        "default": (own, DEFAULT),
        f"best other: {other}": (own, other),
        "random": (own, "random"),
        f"GRAIL: {(grail or '').partition(': ')[2]}": (every, grail),
        "BatchNorm": (every, f"{REPAIRED}: batchnorm"),
        "not repaired": (every, f"{REPAIRED}: none"),
    }
    return {
        name: [
            {key: found[line].mean(key) for key in ("multiply_adds", "top1", "loss")}
            for found in of_share
        ]
        for name, (of_share, line) in chosen.items()
        if line is not None and all(line in found for found in of_share)
    }


def compression(path: Path) -> str:
    """Markdown: the criteria with our repair, then the repairs, a table per network and share."""
    sizes = by_size(read(path))
    parts = [provenance(path), _about(sizes)]
    for (network, share), rows in sizes.items():
        if share < 1:
            [whole] = sizes[network, 1.0]
            title = (
                f"**{network}, {share:.0%} of the multiply-adds** (whole: "
                f"{whole['top1']:.2%}, loss {whole['loss']:.3f}). "
            )
            parts += [title + "Criteria, repaired by least squares:", _criteria(rows)]
            parts += ["Repairs; GRAIL with *(own cut)* chose how many units go by its own losses:"]
            parts += [_repairs(rows)]
    return "\n\n".join(parts)


def _about(sizes: Mapping[tuple[str, float], list[Row]]) -> str:
    apart = max(
        max(row["multiply_adds"] for row in rows) / min(row["multiply_adds"] for row in rows) - 1
        for rows in sizes.values()
    )
    return (
        "Means over draws. Differences are on the draws that both were measured on, with 95 % "
        "intervals of a paired bootstrap over draws and evaluation images; bold where zero is "
        "outside, which one in twenty is by chance. Networks that stand in one table differ by at "
        f"most {apart:.1%} in multiply-adds. *random* is the mean of its seeds."
    )


def _criteria(rows: list[Row]) -> str:
    found = lines(rows, OWN)
    own = found.get(DEFAULT)
    ordered = sorted(found.values(), key=lambda line: -line.mean("top1"))
    header = ["criterion", "draws", "top-1", f"− {DEFAULT}, points", "loss", f"− {DEFAULT}, nats"]
    table = [[line.name, f"{len(line.draws)}", *_cells(line, own)] for line in ordered]
    return markdown(header, table)


def _repairs(rows: list[Row]) -> str:
    """A line per repair, sorted by the first criterion that has all."""
    of_criterion = defaultdict(list)
    for row in rows:
        of_criterion[row["criterion"]].append(row)
    found = {
        name: {line.name.partition(": ")[2]: line for line in lines(part).values()}
        for name, part in of_criterion.items()
        if any(row["repair"] != OWN for row in part)
    }
    if not found:
        return ""
    names = dict.fromkeys(name for of_repair in found.values() for name in of_repair)
    first = max(found.values(), key=len)
    ordered = sorted(names, key=lambda name: -first[name].mean("top1") if name in first else 0)
    table = []
    for name in ordered:
        table.append([name])
        for of_repair in found.values():
            cells = _cells(of_repair[name], of_repair.get(OWN)) if name in of_repair else [""] * 4
            table[-1] += [" ".join(cells[:2]).strip(), " ".join(cells[2:]).strip()]
    header = [f"{name}: {what}" for name in found for what in ("top-1 (− own)", "loss (− own)")]
    return markdown(["repair", *header], table)


def _cells(line: Line, other: Line | None) -> list[str]:
    """Accuracy, its difference from another line's, loss, its difference."""
    points = nats = ""
    if other is not None and other is not line:
        if found := difference(line.hits(), other.hits()):
            points = found.text(100)
        if found := difference(line.losses(), other.losses()):
            nats = found.text(1, 3)
    return [f"{line.mean('top1'):.2%}", points, f"{line.mean('loss'):.3f}", nats]
