"""Workers on a Ray cluster: actors placed by resource, few tasks in flight, deaths survived.

The driver hands out tasks and reads receipts; nothing large passes through it. A worker that dies
is replaced (`MAX_DEATHS` says how often) and its tasks go elsewhere. An error of the task itself is
tried once more, on another worker where there is one, then set aside with its traceback while the
rest goes on.
"""

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError

from shapray.cluster.attempt import Trouble
from shapray.cluster.backlog import Backlog, Entry
from shapray.cluster.host import Host
from shapray.cluster.needs import in_words, lacking, worker_needs
from shapray.cluster.news import News
from shapray.cluster.nodes import capacity, nodes, seems_to_grow
from shapray.cluster.pool import Counts, Failure, Task, ignore, set_aside
from shapray.config import Cluster
from shapray.credentials import without_credentials
from shapray.errors import ClusterError, JobError, StorageError
from shapray.text import one_line

MAX_ATTEMPTS = 2  # of a task that raises
MAX_DEATHS = 6  # workers that may die on one task, or one after the other while they start
AHEAD, MOST_AHEAD = 4, 64  # workers that wait for a node, so that an autoscaler adds some
LOOK_SECONDS = 5.0  # how often a changed cluster is noticed
COMPLAIN_SECONDS = 30.0  # without any worker

_DOUBT = {
    True: "; if this cluster adds no nodes, set cluster.grows: false",
    False: "; if this cluster adds nodes when they are needed, set cluster.grows: true",
}

logger = logging.getLogger(__name__)


_REMOTE: Any = ray.remote(max_restarts=0)(Host)  # restarted here, where tasks can move


@dataclass(eq=False)
class _Member:
    number: int
    actor: Any
    preparing: Any  # its first call, None once that is done
    node: str = ""  # address of
    flights: dict[Any, list[Entry]] = field(default_factory=dict)  # in order of submission


@dataclass
class _Stage:
    name: str
    backlog: Backlog
    on_receipt: Callable[[Any], None]
    counts: Counts = field(default_factory=Counts)
    failures: list[Failure] = field(default_factory=list)


class RayPool:
    """Workers as Ray actors, as many as asked for or as the cluster holds.

    Where the cluster grows by itself, a few more workers than it holds wait for a node: that makes
    it grow, and ends with the run, unlike a request to the autoscaler.

    Args:
        make: device -> worker; sent to the cluster once.
        cluster: the job's section.
    Raises:
        JobError: the cluster cannot hold a single worker and does not grow, or what a worker
            needs cannot be pickled.
    """

    on_ray = True

    def __init__(self, make: Callable[[str], Any], cluster: Cluster) -> None:
        self.cluster = cluster
        has_gpu = any(node.get("GPU", 0) for node in nodes())
        self.device, self.needs = worker_needs(cluster, has_gpu, "the cluster")
        self.capacity = capacity(self.needs)
        guessed = cluster.grows == "auto"
        self.grows = seems_to_grow() if guessed else bool(cluster.grows)
        self.doubt = _DOUBT[self.grows] if guessed else ""
        if not self.capacity:
            self._has_no_room()
        self.looked = self.quiet_since = time.monotonic()
        self.make = ray.put(_pickled(make))
        self.news = News()
        self.members: list[_Member] = []
        self.owners: dict[Any, _Member] = {}  # of all calls that are under way
        self.numbers = itertools.count()
        self.deaths_at_start = 0

    def _has_no_room(self) -> None:
        alike = Counter(map(in_words, nodes()))
        there = "; ".join(f"{n} with {words}" if n > 1 else words for words, n in alike.items())
        need = (
            f"{', '.join(lacking(nodes(), self.needs))}: a worker needs {in_words(self.needs)} on "
            f"one node, and no node has that; nodes: {there or 'none'}"
        )
        if not self.grows:
            raise JobError(f"{need}{self.doubt}")
        logger.warning("%s; waiting for the autoscaler to add one%s", need, self.doubt)

    @property
    def description(self) -> str:
        n = self.capacity if self.cluster.workers == "auto" else self.cluster.workers
        more = ", more as the cluster grows" if self._may_grow else ""
        return f"up to {n} Ray workers of {in_words(self.needs)}, {self.device}{more}"

    @property
    def _may_grow(self) -> bool:
        return self.grows and self.cluster.workers == "auto"

    def run(
        self,
        method: str,
        tasks: Iterable[Task],
        on_receipt: Callable[[Any], None],
        on_change: Callable[[Counts], None] = ignore,
    ) -> list[Failure]:
        stage = _Stage(method, Backlog(tasks), on_receipt)
        try:
            while stage.backlog or any(member.flights for member in self.members):
                self._staff(len(stage.backlog))
                self._submit(stage)
                for member, reference in self._wait():
                    self._receive(stage, member, reference)
                stage.counts.said = self.news.latest(m.number for m in self.members if m.flights)
                stage.counts.n_workers = sum(m.preparing is None for m in self.members)
                on_change(stage.counts)
        except BaseException:
            for member in [member for member in self.members if member.flights]:
                self._dismiss(member)  # what it still does belongs to a stage that is over
            raise
        return stage.failures

    def _staff(self, n_waiting: int) -> None:
        """As many workers as there is work for, up to what was asked for or the cluster offers."""
        if time.monotonic() - self.looked > LOOK_SECONDS:
            self.looked, self.capacity = time.monotonic(), capacity(self.needs)
        limit = self.capacity if self.cluster.workers == "auto" else self.cluster.workers
        if self._may_grow and n_waiting:
            limit += min(max(self.capacity, AHEAD), MOST_AHEAD)
        busy = sum(bool(member.flights) for member in self.members)
        for _ in range(min(limit, busy + n_waiting) - len(self.members)):
            actor = _REMOTE.options(num_cpus=self.needs["CPU"], num_gpus=self.needs["GPU"]).remote()
            number = next(self.numbers)
            first_call = actor.prepare.remote(self.make, self.device, self.news.voice(number))
            member = _Member(number, actor, first_call)
            self.members.append(member)
            self.owners[first_call] = member
        if self._may_grow and not n_waiting:  # no node is to start for a worker without work
            waiting = [member for member in self.members if member.preparing]
            for member in waiting[: max(0, len(self.members) - limit)]:
                self._dismiss(member)

    def _submit(self, stage: _Stage) -> None:
        """One batch to do for everybody, then one more, so that no worker waits for the driver.

        Not at the end: what is left then goes to whoever is free first.
        """
        ready = [member for member in self.members if member.preparing is None]
        for depth in (1, 2):
            for member in ready:
                if len(member.flights) >= depth:
                    continue
                if depth == 2 and len(stage.backlog) <= len(self.members):
                    return
                entries = stage.backlog.take(member.number, len(ready), len(self.members))
                if entries:
                    tasks = [entry.task for entry in entries]
                    reference = member.actor.call.remote(stage.name, tasks)
                    member.flights[reference] = entries
                    self.owners[reference] = member

    def _wait(self) -> list[tuple[_Member, Any]]:
        """What has come back, in batches; empty after a while in which nothing has."""
        if not self.owners:  # waiting for a node
            time.sleep(LOOK_SECONDS / 5)
            self._complain(False)
            return []
        coming = [*self.owners, *self.news.coming]
        done, rest = ray.wait(coming, num_returns=1, timeout=LOOK_SECONDS)
        self._complain(bool(done))
        if done and rest:
            done += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        self.news.hear(done)
        return [(self.owners[call], call) for call in done if call in self.owners]

    def _complain(self, anything_done: bool) -> None:
        """Say so if nobody works because the cluster has no room for a worker just now."""
        now = time.monotonic()
        if anything_done or any(member.preparing is None for member in self.members):
            self.quiet_since = now
        elif now - self.quiet_since > COMPLAIN_SECONDS:
            self.quiet_since = now
            logger.warning(
                "waiting for a worker to start: it needs %s on one node, and the cluster has %s "
                "free on %d nodes%s%s",
                in_words(self.needs),
                in_words(ray.available_resources()),
                len(nodes()),
                "; the autoscaler has been asked for more" if self.grows else "",
                self.doubt,
            )

    def _receive(self, stage: _Stage, member: _Member, reference: Any) -> None:
        """Take in what a call has come to."""
        if self.owners.pop(reference, None) is None:  # its worker was lost in the same batch
            return
        if reference == member.preparing:
            self._begin(member)
            return
        entries = member.flights[reference]
        try:
            results, seconds = ray.get(reference)
        except RayTaskError as error:  # the call itself failed, e.g. unpickling a task
            results, seconds = [], 0.0
            if len(entries) == 1:
                results = [Trouble("task", _last_line(error), str(error))]
            for entry in entries:
                entry.attempts += len(entries) > 1  # one by one from here on
        except RayError as error:
            self._lose(stage, member, error)
            return
        del member.flights[reference]
        self.news.forget(member.number)
        for entry, result in zip(entries, results):
            if isinstance(result, Trouble):
                self._try_again(stage, member, entry, result)
            else:
                stage.on_receipt(result)
        stage.backlog.put_back(entries[len(results) :])
        n_done = sum(not isinstance(result, Trouble) for result in results)
        if n_done == len(entries):
            stage.backlog.learn(n_done, seconds, len(self.members))
        stage.counts.n_done += n_done

    def _begin(self, member: _Member) -> None:
        try:
            found = ray.get(member.preparing)
        except RayError as error:
            self._dismiss(member)
            self.deaths_at_start += 1
            if self.deaths_at_start >= MAX_DEATHS and all(m.preparing for m in self.members):
                raise ClusterError(
                    f"{MAX_DEATHS} workers in a row died while they started; mostly their nodes "
                    "have too little memory, or no shapray installed. Ray says of the last: "
                    + _last_line(error)
                ) from error
            logger.warning("a worker died while it started. Ray says: %s", _last_line(error))
            return
        if isinstance(found, Trouble):
            raise found.not_set_up()
        self.deaths_at_start = 0
        member.preparing, member.node = None, found

    def _try_again(self, stage: _Stage, member: _Member, entry: Entry, trouble: Trouble) -> None:
        """A task has failed: once more elsewhere, or set aside."""
        if trouble.kind == "storage":  # the worker has been patient with it already
            raise StorageError(trouble.message)
        entry.attempts += 1
        if trouble.kind != "job" and entry.attempts < MAX_ATTEMPTS:
            entry.avoid = member.number
            stage.backlog.put_back([entry])
            stage.counts.n_retried += 1
            logger.warning(
                "%s: %s tried again%s: %s",
                stage.name,
                entry.task,
                " on another worker" if len(self.members) > 1 else "",
                without_credentials(trouble.message),
            )
        else:
            stage.failures.append(set_aside(stage.name, entry.task, trouble))
            stage.counts.n_failed += 1

    def _lose(self, stage: _Stage, member: _Member, error: RayError) -> None:
        """A worker is gone: its tasks go elsewhere, those it may have been at counted."""
        self._dismiss(member)
        running, *waiting = member.flights.values()
        more = f" and the next {len(running) - 1}" if len(running) > 1 else ""
        logger.warning(
            "%s: a worker died (node %s) at %s%s; its tasks go elsewhere. Ray says: %s",
            stage.name,
            member.node,
            running[0].task,
            more,
            _last_line(error),
        )
        for entry in running:
            entry.deaths += 1
            stage.counts.n_retried += entry.deaths < MAX_DEATHS
            if entry.deaths == MAX_DEATHS:
                message = (
                    f"{MAX_DEATHS} workers died while they did it; mostly that is too little "
                    f"memory on their nodes. Ray says of the last: {_last_line(error)}"
                )
                stage.failures.append(
                    set_aside(stage.name, entry.task, Trouble("task", message, ""))
                )
                stage.counts.n_failed += 1
        stage.backlog.put_back(itertools.chain(*waiting))
        stage.backlog.put_back(entry for entry in running if entry.deaths < MAX_DEATHS)
        member.flights.clear()

    def _dismiss(self, member: _Member) -> None:
        self.members.remove(member)
        for reference in (member.preparing, *member.flights):
            self.owners.pop(reference, None)
        ray.kill(member.actor)

    def close(self) -> None:
        while self.members:
            self._dismiss(self.members[0])
        self.news.close()


def _pickled(make: Callable[[str], Any]) -> np.ndarray:
    """As an array, which workers read where it lies."""
    try:
        return np.frombuffer(cloudpickle.dumps(make), np.uint8)
    except Exception as error:  # whatever the objects raise
        raise JobError(
            "model.factory, data: the network or the images cannot be sent to workers, as they "
            f"cannot be pickled ({one_line(error)}); a file or a lock that an object holds should "
            "be opened where it is used"
        ) from error


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
