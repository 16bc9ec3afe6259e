"""The public function that scores a network's units.

It goes through the same code as the command, without a job file, a folder or, unless workers are
asked for, Ray. Arguments have the names of the job file's keys, without their section.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from shapray.arguments import (
    about,
    in_memory,
    named_as_arguments,
    scorable,
    sections,
    without_sections,
)
from shapray.cluster.pool import Failure, Pool
from shapray.cluster.start import open_pool
from shapray.config import Cluster, Score
from shapray.driver.console import PlainConsole
from shapray.driver.group_table import groups_table
from shapray.driver.inputs import CHECK_IMAGES
from shapray.driver.prices import chosen, is_piloted, pilot_images
from shapray.driver.progress import meter
from shapray.driver.tasks import group_tasks
from shapray.engine.choose import choose_groups
from shapray.inputs.images import check_labels
from shapray.inputs.model import ReadModel
from shapray.network.consumers import count_active
from shapray.network.cuttable import cuttable
from shapray.network.group import Group
from shapray.network.probe import probe
from shapray.pruning.evaluate import IMAGES_AT_ONCE
from shapray.shapley.estimators import check_enumerable
from shapray.shapley.pilot import FEWEST_IMAGES
from shapray.storage.aggregate import aggregate_group
from shapray.worker.in_memory import ImagesInMemory, InMemoryWorker, Rows
from shapray.worker.tasks import PrecisionTask

S = TypeVar("S", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Scores:
    """What `score` found; the tables have the columns of a run's files of the same names.

    Attributes:
        groups: a row per group of the network; those not scored say why.
        scores: a row per unit.
        class_scores: a row per unit and label; empty without labels.
        images: a row per group and image, with the Shapley values of its units.
    """

    groups: pa.Table
    scores: pa.Table
    class_scores: pa.Table
    images: pa.Table

    def to_arrow(self) -> pa.Table:
        """`scores`: group, unit, mean, mean_abs, std, standard_error and more."""
        return self.scores

    def to_pandas(self) -> Any:
        """`scores` as a pandas data frame; pandas must be installed."""
        return self.scores.to_pandas()

    def __repr__(self) -> str:
        n_scored = len(set(self.scores["group"].to_pylist()))
        n_images = self.scores["n_images"][0].as_py()
        return (
            f"Scores of {self.scores.num_rows} units in {n_scored} of {self.groups.num_rows} "
            f"groups, from {n_images} images"
        )


def score(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    groups: str | Sequence[str] = "*",
    ids: Sequence[str] | None = None,
    workers: int | str | None = None,
    balanced: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Scores:
    """Shapley values of a network's units on calibration images.

    Args:
        model: any network that gives logits (n, classes); left as it is. A copy of it is scored,
            in eval mode and float32.
        images: (n, channels, height, width), floats as the network takes them.
        labels: (n,) integers from 0; None for value functions that need none.
        groups: glob patterns over the names of the groups to score.
        ids: names of the images, all different; by default their numbers. With the seed they say
            which coalitions are drawn: the same ids, the same values as a job's.
        workers: None: in this process; a number or "auto": on the Ray cluster that this process
            belongs to, or on one started here for the time.
        balanced: how many images there are of each label was fixed before they were drawn, as it
            is by a job's `data.calibration.limit`; then only their spread within the labels counts
            as an error of the scores.
        progress: show how far it is, in a terminal or a notebook.
        **settings: any key of the job file's `score` and `cluster` sections by its name:
            `value`, `estimator`, `permutations`, `exact_max_players`, `target_error`,
            `precision`, `seed`, `device`, `images_per_task`, `memory_per_worker`,
            `cpus_per_worker` (threads of a worker, and of this process without workers; 1 unless
            told otherwise), `gpus_per_worker`.
    Raises:
        ValueError: an argument is wrong; names it.
        RuntimeError: scoring failed; names group and images.
    """
    ready = prepared(model, images, labels, groups=groups, ids=ids, workers=workers, **settings)
    return ready.run(progress, balanced)


@dataclass(frozen=True)
class Prepared:
    """A scoring whose arguments have been checked.

    Attributes:
        read: the copy that is scored, and what about it is not as it was given.
        images: all of them, with the labels if there are any.
        asked, cluster: how it is scored.
        in_process: without Ray.
        groups: all of the network; those not scored say why.
        scored: the others.
        tail_macs: multiply-adds per coalition and image of these.
        n_active: (n_images, n_scored).
    """

    read: ReadModel
    images: ImagesInMemory
    asked: Score
    cluster: Cluster
    in_process: bool
    groups: tuple[Group, ...]
    tail_macs: dict[str, int]
    n_active: np.ndarray

    @property
    def model(self) -> nn.Module:
        return self.read.network

    @property
    def scored(self) -> list[Group]:
        return [group for group in self.groups if group.reason is None]

    def run(self, progress: bool, balanced: bool = False) -> Scores:
        """Score; arguments as of `score`.

        Raises:
            ValueError: a worker cannot be made as asked; names the argument.
            RuntimeError: scoring failed; names group and images.
        """
        scored, asked, cluster = self.scored, self.asked, self.cluster
        make = functools.partial(InMemoryWorker, self.model, scored, self.images, asked, cluster)
        console = PlainConsole(quiet=not progress)
        for note in self.read.notes:
            console.print(f"model: {note}")
        with ExitStack() as stack:
            stack.enter_context(named_as_arguments())  # what only a worker finds, as a device
            stack.enter_context(_threads_kept())
            pool = stack.enter_context(open_pool(make, cluster, in_process=self.in_process))
            precision = _precision(pool, asked)
            n_images = len(self.images)
            prices, failures = chosen(
                scored,
                self.tail_macs,
                pilot_images(self.images.labels, n_images, n_images),
                n_images,
                asked,
                precision,
                functools.partial(pool.run, "pilot"),
            )
            _nothing_failed(failures)
            tasks = group_tasks(
                scored, self.tail_macs, self.n_active, prices, asked, cluster, precision
            )
            rows = list[Rows]()
            with meter(console, "score", len(tasks), sum(task.cost for task in tasks)) as shown:

                def receive(result: Rows) -> None:
                    rows.append(result)
                    shown.advance(result.task.cost)

                _nothing_failed(pool.run("score", tasks, receive, shown.show))
        return _tables(self.groups, self.tail_macs, scored, rows, balanced)


def prepared(
    model: nn.Module,
    images: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    *,
    groups: str | Sequence[str] = "*",
    ids: Sequence[str] | None = None,
    workers: int | str | None = None,
    **settings: Any,
) -> Prepared:
    """Check what `score` is given, and the network's groups.

    Raises:
        ValueError: an argument is wrong; names it.
    """
    with named_as_arguments():
        asked, cluster = sections(groups, workers, settings)
        held = in_memory(images, labels, ids, asked)
        if asked.target_error is not None and not is_piloted(asked, len(held)):
            raise ValueError(
                f"target_error: {asked.target_error:g}, and there is nothing to meet it with: "
                f"estimator is {asked.estimator}, permutations is {asked.permutations}; auto "
                f"chooses them for {FEWEST_IMAGES} images or more, found {len(held)}"
            )
        few = held.pixels[:CHECK_IMAGES]
        read = scorable(model, few)
        copied = read.network
        n_classes = about("model", lambda: probe(copied, few))
        check_labels(held.labels, held.ids, n_classes, "labels")
        copied, found = about("model", lambda: cuttable(copied, few[:1], asked.groups))
        checked, tail_macs = about(
            "groups", lambda: choose_groups(copied, found, few, asked.groups, asked.seed)
        )
        checked = tuple(
            replace(group, reason=group.reason and without_sections(group.reason))
            for group in checked
        )
        scored = [group for group in checked if group.reason is None]
        n_active = np.concatenate(
            [count_active(copied, scored, part) for part in held.pixels.split(IMAGES_AT_ONCE)]
        )
        if asked.estimator == "exact":
            names = [group.name for group in scored]
            about("estimator", lambda: check_enumerable(n_active, held.ids, names))
    return Prepared(read, held, asked, cluster, workers is None, checked, tail_macs, n_active)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """A worker in this process sets the number of threads; the caller gets the own back."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _precision(pool: Pool, asked: Score) -> str:
    if asked.precision != "auto":
        return asked.precision
    found = list[str]()
    _nothing_failed(pool.run("choose_precision", [PrecisionTask()], found.append))
    return found[0]


def _nothing_failed(failures: Sequence[Failure]) -> None:
    if failures:
        first = min(failures, key=lambda failure: str(failure.task))
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise RuntimeError(f"{first.task}: {first.message}{more}\n{first.traceback}")


def _tables(
    checked: Sequence[Group],
    tail_macs: Mapping[str, int],
    scored: Sequence[Group],
    rows: Sequence[Rows],
    balanced: bool,
) -> Scores:
    """All rows in the order of groups and images, and what they sum up to."""
    by_group: dict[str, list[Rows]] = {group.name: [] for group in scored}
    for part in rows:
        by_group[part.task.group].append(part)
    ordered = {
        name: [part.table for part in sorted(parts, key=lambda part: part.task.first)]
        for name, parts in by_group.items()
    }
    summed = [
        aggregate_group(group.name, group.n_units, ordered[group.name], balanced)
        for group in scored
    ]
    return Scores(
        groups=groups_table(checked, tail_macs),
        scores=pa.concat_tables([of_units for of_units, _ in summed]),
        class_scores=pa.concat_tables([of_classes for _, of_classes in summed]),
        images=pa.concat_tables([table for tables in ordered.values() for table in tables]),
    )
