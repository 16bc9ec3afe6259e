"""Rankings and losses to the cuts that are compared, all at the sizes of the job's own."""

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shapray.config import Prune
from shapray.network.group import Group
from shapray.network.index_maps import Kept
from shapray.network.unreached import Settings
from shapray.pruning import allocate
from shapray.pruning.allocate import Size
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.curves import counts
from shapray.pruning.sizes import Sizes
from shapray.text import some

PLAN_FORMAT = 1  # of ``prune/plan.json``; raised when what is in it changes its meaning
SEARCHED = ("max_loss_increase", "min_accuracy")  # targets that only a measurement can meet
HELD_BACK = 5  # every so many calibration images, one, for that measurement
Losses = Mapping[str, Mapping[str, Sequence[float]]]  # ranking -> group -> loss at `counts`


@dataclass(frozen=True)
class Cut:
    """Units that go, how they were chosen, and what is done for the rest."""

    name: str
    criterion: str | None  # None: nothing was removed
    seed: int | None
    size: float | None  # that was asked for, in the job's own measure
    removed: Mapping[str, Sequence[int]]  # group -> units
    repair: tuple[str, ...]

    @property
    def n_removed(self) -> int:
        return sum(len(units) for units in self.removed.values())


WHOLE = Cut("whole", None, None, None, {}, ())


class Chooser:
    """How many units go from each group, under a job's constraints.

    Args:
        prune: the job's section.
        n_units: of every group that was scored.
        sizes: of the network; without it, sizes are shares of the units only.
    """

    def __init__(self, prune: Prune, n_units: Mapping[str, int], sizes: Sizes | None) -> None:
        self.prune, self._sizes, self.n_units = prune, sizes, dict(n_units)
        self.latency: Size | None = None  # share of the whole network's, once it has been measured
        self.choices = {
            name: [0]
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in prune.protect)
            else allocate.options(n, prune.min_units, prune.round_to)
            for name, n in self.n_units.items()
        }

    @property
    def sizes(self) -> Sizes:
        assert self._sizes is not None
        return self._sizes

    def units(self, removed: Mapping[str, int]) -> float:
        """How many are left."""
        return sum(n - removed.get(name, 0) for name, n in self.n_units.items())

    def measure(self, key: str) -> tuple[Size, float]:
        """What a target is said in, and what the whole network has of it."""
        if key == "ratio":
            return self.units, self.units({})
        if key == "latency":
            assert self.latency is not None
            return self.latency, 1.0
        if key == "parameters":
            return self.sizes.parameters, float(self.sizes.all_parameters)
        return self.sizes.macs, float(self.sizes.all_macs)

    def allowed(self, key: str, share: float) -> float:
        """The size that must not be exceeded, in what `measure` measures."""
        whole = self.measure(key)[1]
        if key == "ratio":
            return whole - math.floor(share * whole + 1e-9)
        return whole * share * (1 + 1e-9)  # a size that was measured can be asked for again

    def check(self) -> None:
        """The job's sizes can be met.

        Raises:
            ValueError: names the key, the constraints, and the nearest that can.
        """
        key, value = self.prune.target
        if key == "latency" and self.latency is None:
            return  # nobody knows yet
        size, whole = self.measure(key)
        smallest = allocate.smallest(self.choices, size)
        least = smallest / whole
        idle = [
            pattern
            for pattern in self.prune.protect
            if not any(fnmatch.fnmatchcase(name, pattern) for name in self.n_units)
        ]
        if idle:
            raise ValueError(
                f"protect: no group that is scored is named '{idle[0]}'; they are "
                + some(list(self.n_units))
            )
        for share in (*(() if key in SEARCHED else (value,)), *self.prune.curve):
            if smallest > self.allowed(key, share):
                nearest = math.floor((1 - least) * 1e4) / 1e4 if key == "ratio" else _up(least)
                raise ValueError(
                    f"{key}: {share} cannot be met: with min_units {self.prune.min_units}, "
                    f"round_to {self.prune.round_to}, protect {list(self.prune.protect)} and the "
                    f"{len(self.n_units)} groups that are scored, "
                    + (
                        f"at most {1 - least:.2%} of the units can go"
                        if key == "ratio"
                        else f"at least {least:.2%} of the network's {_WORDS[key]} stays"
                    )
                    + f"; the nearest is {nearest:g}"
                )

    def least_share(self) -> float:
        """Of the multiply-adds, with as few units as the constraints allow."""
        return allocate.smallest(self.choices, self.sizes.macs) / self.sizes.all_macs

    def choose(
        self, ranking: Ranking, losses: Losses, key: str, share: float
    ) -> dict[str, list[int]]:
        """The units that go, group by group, ascending.

        Args:
            losses: of the ranking, where `allocation` is measured.
            key, share: "macs" or "parameters" and the share that may stay; "ratio" and the share
                of the units that go.
        """
        size, target = self.measure(key)[0], self.allowed(key, share)
        orders = ranking.orders
        if self.prune.allocation == "measured":
            curves = {
                group: _Interpolated(losses[ranking.name][group], n)
                for group, n in self.n_units.items()
            }
            found = allocate.least_loss(curves, self.choices, size, target)
        elif self.prune.allocation == "global":
            found = allocate.in_order(allocate.by_score(ranking.scores), self.choices, size, target)
        else:
            found = allocate.in_order(allocate.evenly(self.n_units), self.choices, size, target)
        return {group: sorted(orders[group][:count]) for group, count in found.items()}


_WORDS = {
    "macs": "multiply-adds",
    "parameters": "parameters",
    "latency": "latency",
    "max_loss_increase": "multiply-adds",
    "min_accuracy": "multiply-adds",
}


def _up(share: float) -> float:
    return math.ceil(share * 1e4) / 1e4


class _Interpolated:
    """A loss curve at any count: never lower with more units gone."""

    def __init__(self, losses: Sequence[float], n_units: int) -> None:
        self.at, self.losses = counts(n_units), np.maximum.accumulate(np.array(losses))

    def __call__(self, count: int) -> float:
        return float(np.interp(count, self.at, self.losses))


@dataclass(frozen=True)
class Compared:
    """All networks that a job measures.

    Attributes:
        cut: the job's own, not repaired; the kept one where nothing is repaired.
        kept: the job's own, repaired: what is saved.
        others: its rivals at the same size, and all at the sizes of the curve.
    """

    cut: Cut
    kept: Cut
    others: tuple[Cut, ...]

    @property
    def all(self) -> list[Cut]:
        bare = () if self.cut is self.kept else (self.cut,)
        return [WHOLE, *bare, self.kept, *self.others]


def compared_cuts(
    rankings: Sequence[Ranking],
    losses: Losses,
    chooser: Chooser,
    key: str,
    share: float,
    planned: float | None = None,
) -> Compared:
    """The job's own cut at its own size and at those of the curve, and for each of them the cuts by
    the other rankings with as many multiply-adds.

    Args:
        rankings: the job's own first.
        key, share: the job's target.
        planned: the share to plan with so that `share` comes out, if it is another one.
    """
    prune, sizes = chooser.prune, chooser.sizes
    own, *others = rankings
    found: list[Cut] = []
    for size in (share, *(size for size in prune.curve if size != share)):
        by = size if planned is None or size != share else planned
        removed = chooser.choose(own, losses, key, by)
        name = f"{own.name}-{size}"
        found.append(Cut(name, own.criterion, own.seed, size, removed, prune.repair))
        macs = sizes.macs({group: len(units) for group, units in removed.items()})
        for other in others:
            removed = chooser.choose(other, losses, "macs", macs / sizes.all_macs)
            name = f"{other.name}-{size}"
            found.append(Cut(name, other.criterion, other.seed, size, removed, prune.repair))
    kept, *rest = found
    bare = replace(kept, name=f"{kept.name}-not-repaired", repair=()) if prune.repair else kept
    return Compared(bare, kept, tuple(rest))


def compared_networks(prune: Prune) -> tuple[int, list[bool]]:
    """How many rankings a job compares, and of each network that it measures, if it is repaired."""
    n_rankings = 1 + sum(
        len(prune.random_seeds) if name == "random" else 1 for name in prune.compared
    )
    key, value = prune.target
    n_sizes = 1 + sum(key in SEARCHED or size != value for size in prune.curve)
    bare = [False] * (1 + bool(prune.repair))
    return n_rankings, [*bare, *[bool(prune.repair)] * (n_rankings * n_sizes)]


def plan_json(
    plan: Cut, groups: Sequence[Group], kept: Mapping[str, Kept], dropped: Settings
) -> dict[str, Any]:
    """The content of ``prune/plan.json``.

    Args:
        groups: those that were scored.
        kept: what is left of each module that loses channels; null in the file: all.
        dropped: what was set afterwards so that the network can be trained.
    """
    return {
        "format": PLAN_FORMAT,
        "groups": {
            group.name: {"n_units": group.n_units, "removed": list(plan.removed[group.name])}
            for group in groups
        },
        "modules": {module: asdict(found) for module, found in kept.items()},
        "dropped": dict(dropped),
    }
