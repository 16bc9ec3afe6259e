"""A cut in several rounds: how small the network is after each, and what is said of a smaller
network's units said of the whole network's.

What units are worth changes as others go. So the first round cuts to a size on the way; what is
left is scored as it is then, and cut further.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shapray.config import Prune
from shapray.network.index_maps import units_left
from shapray.pruning.allocate import UnreachableError
from shapray.pruning.chooser import Chooser, Losses
from shapray.pruning.ranking import Ranking

Removed = Mapping[str, Sequence[int]]  # group -> units of the whole network
BETWEEN = ("batchnorm", "least_squares")  # repairs of a network that is scored once more


def sizes_on_the_way(prune: Prune) -> list[float]:
    """The target of every round, in the job's own measure; the last is the job's own.

    Each round leaves the same share of what the round before has left.
    """
    key, value = prune.target
    parts = [number / prune.rounds for number in range(1, prune.rounds)]
    if key == "ratio":
        return [*(1 - (1 - value) ** part for part in parts), value]
    return [*(value**part for part in parts), value]


def check_rounds(prune: Prune, chooser: Chooser) -> None:
    """There are no more rounds than units that can go.

    Raises:
        ValueError: names the key and the most rounds there can be.
    """
    most, n_groups = sum(counts[-1] for counts in chooser.choices.values()), len(chooser.n_units)
    if prune.rounds > max(1, most):
        raise ValueError(
            f"rounds: {prune.rounds}; there can be no more than units that can go, and of the "
            f"{sum(chooser.n_units.values())} units in the {n_groups} group{'s' * (n_groups > 1)} "
            f"to score {most} can go: {max(1, most)} rounds at most"
        )


def repairs_between(prune: Prune) -> tuple[str, ...]:
    """What is done for a network that is scored once more: nothing that takes training."""
    return tuple(name for name in prune.repair if name in BETWEEN)


def changed(name: str, n_units: int, n_left: Mapping[str, int]) -> str | None:
    """Why a cut network's group is not what is left of one that was scored; None if it is.

    Args:
        n_left: group -> how many units the cut has left of it, those that were scored.
    """
    if name not in n_left:
        return "not scored in the whole network"
    if n_units != n_left[name]:
        return f"has {n_units} units, where the cut left {n_left[name]}"
    return None


def of_the_whole(ranking: Ranking, n_units: Mapping[str, int], removed: Removed) -> Ranking:
    """A cut network's ranking as one of the whole network's units: what is gone goes first.

    Args:
        ranking: of the cut network; a group that it lacks loses no more.
        n_units: of the whole network's groups.
        removed: what the cut network lacks: group -> units of the whole network.
    """
    scores = {}
    for group, n in n_units.items():
        scores[group] = np.full(n, -np.inf)
        left = units_left(n, removed.get(group, ()))
        scores[group][left] = ranking.scores.get(group, np.inf)
    return Ranking(ranking.criterion, ranking.seed, scores)


@dataclass(frozen=True)
class Decision:
    """All that a round cuts by, said of the whole network.

    Attributes:
        number: of the round, from 1.
        chooser, own, losses: see `Chooser.choose`.
    """

    number: int
    chooser: Chooser
    own: Ranking
    losses: Losses

    def cut(self, size: float) -> dict[str, list[int]]:
        """The units that go by this round and those before.

        Args:
            size: that the network comes to, of `sizes_on_the_way`.
        Raises:
            ValueError: what can still go is not enough; names the key.
        """
        prune = self.chooser.prune
        key, value = prune.target
        try:
            return self.chooser.choose(self.own, self.losses, key, size)
        except UnreachableError as error:
            raise ValueError(
                f"rounds: {prune.rounds}; {key}: {value} cannot be met by what can still go in "
                f"round {self.number}; ask for fewer rounds"
            ) from error

    def takes_more(self, cut: Removed) -> bool:
        """Whether the round takes units that those before have left."""
        return any(len(units) > self.chooser.gone[group] for group, units in cut.items())
