"""Rankings and losses to how many units go from each group, and so to which."""

import copy
import fnmatch
import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from shapray.config import Prune
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.pruning import allocate
from shapray.pruning.allocate import Size
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.curves import counts
from shapray.pruning.sizes import Sizes
from shapray.text import some

SEARCHED = ("max_loss_increase", "min_accuracy")  # targets that only a measurement can meet
EVEN = 0.005  # by which a rival's size may differ from the job's own cut, where it can be met
Losses = Mapping[str, Mapping[str, Sequence[float]]]  # ranking -> group -> loss at `counts`


class Chooser:
    """How many units go from each group, under a job's constraints.

    Args:
        prune: the job's section.
        n_units: of every group that was scored.
        sizes: of the network; without it, sizes are shares of the units only.
        groups: those that were scored, at least; of `sizes`, if that is there.
    """

    def __init__(
        self,
        prune: Prune,
        n_units: Mapping[str, int],
        sizes: Sizes | None,
        groups: Sequence[Group] = (),
    ) -> None:
        self.prune, self._sizes, self.n_units = prune, sizes, dict(n_units)
        self._groups = {group.name: group for group in groups} if sizes is None else sizes.groups
        self.latency: Size | None = None  # share of the whole network's, once it has been measured
        self.gone = dict.fromkeys(n_units, 0)  # units of each group, in the rounds before
        self.choices = {
            name: [0]
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in prune.protect)
            else allocate.options(n, prune.min_units, prune.round_to)
            for name, n in self.n_units.items()
        }
        for name, group in self._groups.items():
            if name in self.choices:
                most = len(removable(group, range(group.n_units)))
                if prune.rounds > 1 and group.blocks:
                    most -= group.step  # with a single unit in a block it would be another group
                self.choices[name] = [
                    n for n in self.choices[name] if n <= most and n % group.step == 0
                ]

    def after(self, removed: Mapping[str, Sequence[int]], scored: Collection[str]) -> "Chooser":
        """The chooser of a further round. It speaks of the whole network, too: of its sizes, and
        of all units that go. Rivals are cut in one round.

        Args:
            removed: units that went in the rounds before: group -> units of the whole network.
            scored: groups that can lose more; the others keep what they have.
        """
        chooser = copy.copy(self)
        chooser.prune = self.prune.model_copy(update={"criteria": ()})
        chooser.gone = {name: len(removed.get(name, ())) for name in self.n_units}
        chooser.choices = {
            name: [n for n in counts if n >= gone] if name in scored else [gone]
            for name, counts in self.choices.items()
            for gone in [chooser.gone[name]]
        }
        return chooser

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
                    f"round_to {self.prune.round_to}, protect {list(self.prune.protect)}, the "
                    f"{len(self.n_units)} groups that are scored"
                    + ", of which some keep equally many units of each convolution group"
                    * any(self.blocks.get(name) for name in self.n_units)
                    + ", "
                    + (
                        f"at most {1 - least:.2%} of the units can go"
                        if key == "ratio"
                        else f"at least {least:.2%} of the network's {_WORDS[key]} stays"
                    )
                    + f"; the nearest is {nearest:g}"
                )

    def least_share(self, key: str) -> float:
        """Of the whole network's size, with as few units as the constraints allow."""
        size, whole = self.measure(key)
        return allocate.smallest(self.choices, size) / whole

    def choose(
        self, ranking: Ranking, losses: Losses, key: str, share: float
    ) -> dict[str, list[int]]:
        """The units that go, group by group, ascending.

        Args:
            ranking: of the whole network's units; what is gone goes first.
            losses: of the ranking, where `allocation` is measured; in a further round, of what
                more of a group goes.
            key, share: "macs" or "parameters" and the share that may stay; "ratio" and the share
                of the units that go.
        """
        orders, allowed = self._orders(ranking), self.choices
        if self._sizes is not None and key != "latency":
            chooser = copy.copy(self)
            chooser._sizes = self._sizes.in_order(orders)
            size = chooser.measure(key)[0]
            allowed = {
                name: [n for n in counts if n <= len(orders[name])] or counts[:1]
                for name, counts in self.choices.items()
            }
        else:
            size = self.measure(key)[0]
        target = self.allowed(key, share)
        if self.prune.allocation == "measured":
            curves = {
                group: _Interpolated(
                    losses[ranking.name].get(group, [0.0]), self.points(group), self.gone[group]
                )
                for group in self.n_units
            }
            found = allocate.least_loss(curves, allowed, size, target)
        elif self.prune.allocation == "global":
            found = allocate.in_order(allocate.by_score(ranking.scores), allowed, size, target)
        else:
            found = allocate.in_order(allocate.evenly(self.n_units), allowed, size, target)
        return {group: sorted(orders[group][:count]) for group, count in found.items()}

    def _orders(self, ranking: Ranking) -> dict[str, list[int]]:
        """In which units go, those that can: every layer keeps a channel."""
        groups = self._groups
        return {
            name: removable(groups[name], order) if name in groups else order
            for name, order in ranking.orders.items()
        }

    def first(self, group: str, n: int) -> list[int]:
        """Some units that can go, as many as that: where only their number matters."""
        order = range(self.n_units[group])
        known = self._groups.get(group)
        return (list(order) if known is None else removable(known, order))[:n]

    @property
    def blocks(self) -> dict[str, tuple[int, ...]]:
        """Group -> the blocks of its units, of each of which equally many go; see `Group`."""
        return {name: group.blocks for name, group in self._groups.items()}

    def points(self, group: str) -> list[int]:
        """How many more of a group's units go at each point of its loss curve."""
        n_left = self.n_units[group] - self.gone[group]
        return counts(n_left, self._groups[group].step if group in self._groups else 1)

    def as_large(self, ranking: Ranking, losses: Losses, macs: float) -> dict[str, list[int]]:
        """The units that go so that as many multiply-adds stay: no more; but within `EVEN` more
        where less than that is too far from it, and more is nearer."""

        def left(removed: Mapping[str, Sequence[int]]) -> float:
            return self.sizes.macs_without(removed)

        less = self.choose(ranking, losses, "macs", macs / self.sizes.all_macs)
        if left(less) >= (1 - EVEN) * macs:
            return less
        more = self.choose(ranking, losses, "macs", (1 + EVEN) * macs / self.sizes.all_macs)
        return min(less, more, key=lambda removed: abs(left(removed) - macs))


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

    def __init__(self, losses: Sequence[float], points: Sequence[int], gone: int) -> None:
        self.at = [gone + count for count in points][: len(losses)]
        self.losses = np.maximum.accumulate(np.array(losses))

    def __call__(self, count: int) -> float:
        return float(np.interp(count, self.at, self.losses))
