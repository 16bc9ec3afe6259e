"""Rankings and losses to the cuts that are compared, all at the sizes of the job's own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shapray.config import Prune
from shapray.network.group import Group
from shapray.network.index_maps import Kept
from shapray.network.unreached import Settings
from shapray.pruning.chooser import SEARCHED, Chooser, Losses
from shapray.pruning.ranking import Ranking

PLAN_FORMAT = 1  # of ``prune/plan.json``; raised when what is in it changes its meaning
HELD_BACK = 5  # every so many calibration images, one, for that measurement
MOST_HELD_BACK = 1000  # of those that are to spare


@dataclass(frozen=True)
class Cut:
    """Units that go, how they were chosen, and what is done for the rest."""

    name: str
    criterion: str | None  # None: nothing was removed
    seed: int | None
    size: float | None  # that was asked for, in the job's own measure
    removed: Mapping[str, Sequence[int]]  # group -> units
    repair: tuple[str, ...]
    rounds: int = 1  # of scoring and cutting

    @property
    def n_removed(self) -> int:
        return sum(len(units) for units in self.removed.values())


WHOLE = Cut("whole", None, None, None, {}, (), rounds=0)


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
    in_rounds: Mapping[str, Sequence[int]] | None = None,
) -> Compared:
    """The job's own cut at its own size and at those of the curve, and for each of them the cuts by
    the other rankings with as many multiply-adds, as near as whole units come. Beside a cut in
    several rounds, the job's own ranking in one round is among the others.

    Args:
        rankings: the job's own first.
        key, share: the job's target.
        planned: the share to plan with so that `share` comes out, if it is another one.
        in_rounds: the job's own cut at its own size, if it was found in several rounds.
    """
    prune, sizes = chooser.prune, chooser.sizes
    own = rankings[0]
    found: list[Cut] = []
    for size in (share, *(size for size in prune.curve if size != share)):
        by = size if planned is None or size != share else planned
        name, rivals, n_rounds = f"{own.name}-{size}", rankings[1:], 1
        if found or in_rounds is None:
            removed: Mapping[str, Sequence[int]] = chooser.choose(own, losses, key, by)
        else:
            removed, rivals, n_rounds = in_rounds, rankings, prune.rounds
            name += f"-in-{n_rounds}-rounds"
        found.append(Cut(name, own.criterion, own.seed, size, removed, prune.repair, n_rounds))
        macs = sizes.macs_without(removed)
        for other in rivals:
            removed = chooser.as_large(other, losses, macs)
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
    n_networks = n_rankings * n_sizes + (prune.rounds > 1)  # its own ranking in one round, too
    return n_rankings, [*bare, *[bool(prune.repair)] * n_networks]


def plan_json(
    plan: Cut,
    groups: Sequence[Group],
    kept: Mapping[str, Kept],
    dropped: Settings,
    program: bool,
) -> dict[str, Any]:
    """The content of ``prune/plan.json``.

    Args:
        groups: those that were scored.
        kept: what is left of each module that loses channels; null in the file: all.
        dropped: what was set afterwards so that the network can be trained.
        program: whether the network is a program (see `network.cuttable`), not of its own class.
    """
    return {
        "format": PLAN_FORMAT,
        "rounds": plan.rounds,
        "program": program,
        "groups": {
            group.name: {"n_units": group.n_units, "removed": list(plan.removed[group.name])}
            for group in groups
        },
        "modules": {module: asdict(found) for module, found in kept.items()},
        "dropped": dict(dropped),
    }
