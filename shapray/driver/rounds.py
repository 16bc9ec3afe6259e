"""The rounds behind the first: a smaller network made, scored as it is, and cut further."""

import contextlib
import time
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from shapray.cluster.pool import Failure
from shapray.driver.crew import Crews
from shapray.driver.cutting import Cutting
from shapray.driver.failures import stop_if_failed
from shapray.driver.fingerprint import fingerprint_parts
from shapray.driver.inputs import Inputs
from shapray.driver.inspecting import inspected
from shapray.driver.plan import Plan, plan_further
from shapray.driver.progress import group_meter
from shapray.driver.record import STAGES_OF_A_ROUND, Record, now
from shapray.driver.scoring import scored
from shapray.errors import JobError, NetworkError
from shapray.inputs.digest import weights_digest
from shapray.network.find import find_groups
from shapray.pruning.chooser import Losses
from shapray.pruning.cuts import Cut
from shapray.pruning.evaluate import count_macs
from shapray.pruning.ranking import Ranking
from shapray.pruning.rounds import (
    Decision,
    Removed,
    of_the_whole,
    repairs_between,
    sizes_on_the_way,
)
from shapray.pruning.saved import read_cut
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory
from shapray.worker.tasks import CutMade, CutTask

_DECIDING = (
    "allocation",
    "rank_by",
    "per_multiply_add",
    "min_units",
    "round_to",
    "protect",
)  # keys that say which network a further round scores


@dataclass(frozen=True)
class _Made:
    """A network to be scored.

    Attributes:
        removed: what it lacks.
        origin: everything that says which network it is, but for rounding; for ``run.json``.
        is_new: it was made just now; else an earlier run has.
    """

    network: nn.Module
    removed: Removed
    origin: dict[str, Any]
    is_new: bool


@dataclass(frozen=True)
class Rounds:
    """What a job does behind its first scoring if it has several rounds.

    Attributes:
        inputs, planned: of the whole network.
        record: of the run; its fingerprint is there.
        precision: of all scoring.
    """

    inputs: Inputs
    planned: Plan
    record: Record
    crews: Crews
    precision: str

    def cut(self, own: Ranking, losses: Losses) -> dict[str, list[int]]:
        """The units that go by all rounds: group -> units of the whole network.

        Args:
            own, losses: of the whole network.
        Raises:
            JobError: the size cannot be met by what is left to go in a further round.
            TasksFailed: some tasks were set aside.
        """
        *between, last = sizes_on_the_way(self.inputs.job.prune)
        decision = Decision(1, self.planned.chooser, own, losses)
        fingerprint = self.record.content["fingerprint"]
        for number, size in enumerate(between, 2):
            made = self._made(number, size, decision, fingerprint)
            if made is not None:  # else the same network would get the same scores
                decision, fingerprint = self._scored(number, made)
        return _cut(decision, last)

    def _made(self, number: int, size: float, decision: Decision, fingerprint: str) -> _Made | None:
        """The network that a round scores; None if no unit goes on the way to it.

        It is read from its files in any case, so that a run that is resumed scores the same.
        """
        prune = self.inputs.job.prune
        origin = {
            "scores": fingerprint,
            "groups": [name for name, counts in decision.chooser.choices.items() if counts[1:]],
            "size": {prune.target[0]: size},
            "seed": decision.own.seed,
            "repair": list(repairs_between(prune)),
            **prune.model_dump(mode="json", include=set(_DECIDING)),
        }
        if (kept := self._kept(number, origin)) is not None:
            return kept
        removed, own = _cut(decision, size), decision.own
        if not decision.takes_more(removed):
            return None
        cut = Cut(
            f"round-{number}",
            own.criterion,
            own.seed,
            size,
            removed,
            repairs_between(prune),
            rounds=number - 1,
        )
        found: list[CutMade] = []
        task = CutTask(cut, _folder(number))
        failures = self.crews.of(self.planned).do("cut", [task], found.append)
        stop_if_failed("cut", failures, self.record)
        for note in found[0].notes:
            self.crews.console.print(f"round {number}: {note}")
        return _Made(*self._read(number), origin, is_new=True)

    def _kept(self, number: int, origin: dict[str, Any]) -> _Made | None:
        """The same network by an earlier run, if all of it is there."""
        with contextlib.suppress(JobError):  # what is damaged is made again
            match self._store(number).read_json(names.RUN):
                case {"made_of": made_of, "fingerprint_parts": {"model.weights": weights}}:
                    if made_of == origin:
                        network, removed = self._read(number)
                        if weights_digest(network) == weights:
                            return _Made(network, removed, origin, is_new=False)
        return None

    def _scored(self, number: int, made: _Made) -> tuple[Decision, str]:
        """A smaller network's scores, said of the whole network's units, and their fingerprint."""
        job, network = self.inputs.job, made.network
        store = self._store(number)
        try:
            start = time.monotonic()
            groups = tuple(find_groups(network, self.planned.example))
            inputs = replace(self.inputs, model=network, groups=groups, store=store)
            with group_meter(self.crews.console, len(groups)) as progress:
                planned = plan_further(self.planned, inputs, made.removed, progress)
            planning = time.monotonic() - start
        except NetworkError as error:
            raise JobError(
                f"prune.rounds: {job.prune.rounds}; the network of round {number} cannot be "
                f"scored: {error}"
            ) from error
        self._announce(number, planned)
        record = Record(store, job, self.record.claim, now(), STAGES_OF_A_ROUND)
        record.content["made_of"] = made.origin
        record.planned_in(planning)
        parts = fingerprint_parts(inputs, self.precision)
        record.describe(planned, inputs.notes, self.precision, parts)
        crew = self.crews.of(planned)
        n_active = None
        if made.is_new or job.score.estimator == "exact":
            n_active = inspected(crew, planned, evaluation=False)
        scored(crew, planned, n_active, self.precision, record)

        def stop(stage: str, failures: list[Failure]) -> None:
            stop_if_failed(stage, failures, record)

        with record.stage("prune"):
            fingerprint = record.content["fingerprint"]
            cutting = Cutting(crew, planned, planned.chooser, names.CUTS, stop, fingerprint)
            [own], losses = cutting.ranked_anew()
        own = of_the_whole(own, self._n_units, made.removed)
        return Decision(number, planned.chooser, own, losses), record.content["fingerprint"]

    def _announce(self, number: int, planned: Plan) -> None:
        """Say what is scored now, and which groups are not, though they were before."""
        console, whole = self.crews.console, self.planned.chooser.sizes
        parameters, macs = count_macs(planned.setup.model, planned.example)
        console.print(
            f"round {number} of {self.inputs.job.prune.rounds}: "
            f"{macs / whole.all_macs:.1%} of the multiply-adds and "
            f"{parameters / whole.all_parameters:.1%} of the parameters are left to be scored"
        )
        reasons = {group.name: group.reason for group in planned.groups}
        for name in self._n_units:
            if (reason := reasons.get(name, "it is not found any more")) is not None:
                console.print(f"round {number}: group {name} keeps what it has: {reason}")

    @property
    def _n_units(self) -> dict[str, int]:
        return self.planned.chooser.n_units

    def _read(self, number: int) -> tuple[nn.Module, Removed]:
        factory, whole = self.inputs.job.model.factory, self.inputs.model
        return read_cut(self._store(number), factory, whole, self.planned.example)

    def _store(self, number: int) -> RunDirectory:
        return self.inputs.store.within(_folder(number))


def _cut(decision: Decision, size: float) -> dict[str, list[int]]:
    try:
        return decision.cut(size)
    except ValueError as error:
        raise JobError(f"prune.{error}") from error


def _folder(number: int) -> str:
    return f"rounds/{number}"
