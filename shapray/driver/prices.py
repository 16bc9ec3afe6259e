"""What the images of each group are sampled at, and how many of them: decided once in a run's life.

A pilot looks at a few images of every group (`shapley.pilot`); what follows from it stands in
``prices.parquet``, which every worker's tasks and every resumed run go by.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from torch import Tensor

from shapray.cluster.pool import Failure
from shapray.config import Job, Score
from shapray.errors import JobError, StorageError
from shapray.inputs.digest import digest
from shapray.inputs.images import ImageSet, check_disjoint
from shapray.network.group import Group
from shapray.shapley.pilot import FEWEST_IMAGES, USUAL, Pilot, Price
from shapray.storage import names
from shapray.storage.certainty import Certainty
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import PRICES
from shapray.worker.survey import spread
from shapray.worker.tasks import Piloted, PilotTask

PILOT_IMAGES, PILOT_SHARE = 16, 8  # at most, and one of so many; but a few in any case
FEWEST_PILOT_IMAGES = 4
TARGET_ERROR = 0.25  # of data.calibration.limit: auto, if no other is given
FIRST_IMAGES = 64  # that it takes at first
_FINGERPRINT, _IMAGES = b"shapray.fingerprint", b"shapray.images"
_VARIANCES = ("image_variance", "sampling_variance", "score_variance")


@dataclass(frozen=True)
class GroupPrice:
    """How a group is scored.

    Attributes:
        n_images: the first ones of the calibration set.
        image_variance, sampling_variance: of an image's Shapley values, means over the units, by
            the pilot; NaN if there was none.
        score_variance: of the scores over the units.
    """

    price: Price
    n_images: int
    image_variance: float = math.nan
    sampling_variance: float = math.nan
    score_variance: float = math.nan

    @property
    def certainty(self) -> Certainty:
        """That the scores will have."""
        images, sampling = (
            self.image_variance / self.n_images,
            self.sampling_variance / self.n_images,
        )
        return Certainty.of_squares(self.score_variance, images + sampling, images, sampling)

    def images_for(self, target: float) -> float:
        """How many images meet a target of the total error; infinite where that is not to be
        seen."""
        return self.n_images * (self.certainty.total / target) ** 2


def is_piloted(score: Score, n_images: int) -> bool:
    """Whether prices are chosen by what a pilot tells."""
    sampled = score.permutations == "auto" and score.estimator != "exact"
    return sampled and n_images >= FEWEST_IMAGES


def usual_price(score: Score) -> Price:
    """Of a group without a pilot."""
    if score.permutations == "auto":
        return USUAL
    return Price(score.permutations, "permutations" if score.permutations == 2 else "pairs")


def pilot_images(labels: Tensor | None, n_images: int, n_first: int) -> tuple[int, ...]:
    """Places of the images that a pilot looks at, of all labels.

    Args:
        n_images: that there are.
        n_first: that are taken at first; the others are not looked at.
    """
    n = min(PILOT_IMAGES, max(FEWEST_PILOT_IMAGES, n_images // PILOT_SHARE), n_first)
    return tuple(spread(None if labels is None else labels[:n_first], n_first, n).tolist())


def decided(score: Score, found: Pilot | None, n_images: int, to_spare: bool) -> GroupPrice:
    """A group's price: what the job says, or where it leaves that open what a pilot tells.

    Args:
        found: by a pilot; None if there was none.
        n_images: that there are.
        to_spare: how many of them are taken goes by the error that is left.
    """
    usual = usual_price(score)
    if found is None:
        return GroupPrice(usual, n_images)
    if not is_piloted(score, n_images):
        sampling = found.sampling_at(usual)
        return GroupPrice(usual, n_images, found.variance, sampling, found.spread)
    option = found.best() if to_spare else found.least(n_images, score.target_error)
    return GroupPrice(option.price, n_images, found.variance, option.variance, found.spread)


def chosen(
    groups: Sequence[Group],
    tail_macs: Mapping[str, int],
    places: Sequence[int],
    n_images: int,
    score: Score,
    precision: str,
    run: Callable[[Sequence[PilotTask], Callable[[Piloted], None]], list[Failure]],
    *,
    to_spare: bool = False,
) -> tuple[dict[str, GroupPrice], list[Failure]]:
    """Every group's price, by a pilot where the job leaves it open, and the pilots that failed:
    their groups have the usual price.

    Args:
        tail_macs: multiply-adds per coalition and image of each group.
        places: of the images that a pilot looks at.
        n_images: that there are.
        run: has tasks done; calls what it is given with each result.
        to_spare: see `decided`.
    """
    without_pilot = decided(score, None, n_images, to_spare)
    prices = {group.name: without_pilot for group in groups}
    if not is_piloted(score, n_images):
        return prices, []
    tasks = [
        PilotTask(group.name, tuple(places), precision, cost)
        for group in groups
        for cost in [float(len(places) * group.n_units * max(1, tail_macs[group.name]))]
    ]

    def receive(piloted: Piloted) -> None:
        prices[piloted.task.group] = decided(score, piloted.pilot, n_images, to_spare)

    return prices, run(tasks, receive)


def rounded(n_images: float, images_per_task: int) -> int:
    """To whole tasks, so that the tasks of fewer images are among those of more."""
    return math.ceil(n_images / images_per_task) * images_per_task


def target_error(job: Job) -> float | None:
    """The total error of a score that is enough; None: nobody said."""
    to_spare = job.data.calibration.limit == "auto"
    return job.score.target_error or (TARGET_ERROR if to_spare else None)


def taken_at_last(job: Job, found: GroupPrice, n_images: int) -> int:
    """How many of the images that there are a group will have taken, by what its pilot told."""
    target = target_error(job)
    if job.data.calibration.limit != "auto" or target is None:
        return n_images
    wanted = found.images_for(target)
    if not wanted < n_images:  # infinite or unknown, too
        return n_images
    return min(n_images, rounded(max(FIRST_IMAGES, wanted), job.cluster.images_per_task))


def taken_at_first(job: Job, n_images: int) -> int:
    """How many of the calibration images that there are a run begins with, of each group."""
    if job.data.calibration.limit != "auto":
        return n_images
    return min(n_images, rounded(FIRST_IMAGES, job.cluster.images_per_task))


def taken_by_now(job: Job, store: RunDirectory, n_images: int) -> int:
    """The same of a run that may have been begun before, and have taken more since."""
    found = [price.n_images for price in read_prices(store).values()]
    return min(n_images, max([taken_at_first(job, n_images), *found]))


def check_taken(job: Job, store: RunDirectory, calibration: ImageSet, evaluation: ImageSet) -> None:
    """The images that an earlier run of the same job has taken since it began are still the same,
    and none is among those that measure the result.

    Raises:
        JobError: see `check_disjoint`, or their content is another one.
    """
    n_taken = taken_by_now(job, store, len(calibration))
    check_disjoint(calibration.first(n_taken), evaluation)
    if not read_prices(store):
        return
    metadata = store.read_table(names.PRICES).schema.metadata or {}
    recorded = metadata.get(_IMAGES, b"").decode()
    if recorded and recorded != digest(calibration.content_digests(n_taken)):
        raise JobError(
            f"output: {store.shown} belongs to another job: some of the {n_taken:,} images of "
            f"{calibration.key} that it has taken have another content by now; bring them back, "
            "write to another folder, or delete that one to start over"
        )


def read_prices(store: RunDirectory, fingerprint: str | None = None) -> dict[str, GroupPrice]:
    """Group -> what an earlier run has decided; empty if nothing sound is there.

    Args:
        fingerprint: of the scores, if that must be the same.
    """
    try:
        table = store.read_table(names.PRICES) if store.read(names.PRICES) else None
    except StorageError:
        return {}
    if table is None or not table.schema.equals(PRICES):
        return {}
    made_for = (table.schema.metadata or {}).get(_FINGERPRINT, b"").decode()
    if fingerprint is not None and made_for != fingerprint:
        return {}
    return {row["group"]: _of_row(row) for row in table.to_pylist()}


def publish_prices(
    store: RunDirectory,
    prices: Mapping[str, GroupPrice],
    fingerprint: str,
    calibration: ImageSet,
) -> None:
    """Write them down, with what the images are that they are for.

    Raises:
        JobError: an image cannot be read.
        StorageError: see there.
    """
    n_taken = max(found.n_images for found in prices.values())
    images = digest(calibration.content_digests(n_taken))
    rows = [
        {
            "group": group,
            "permutations": found.price.permutations,
            "sampling": found.price.by,
            "told_every": found.price.told_every,
            "n_images": found.n_images,
            **{name: _null_for_nan(getattr(found, name)) for name in _VARIANCES},
        }
        for group, found in prices.items()
    ]
    schema = PRICES.with_metadata({_FINGERPRINT: fingerprint.encode(), _IMAGES: images.encode()})
    store.publish_table(names.PRICES, [pa.Table.from_pylist(rows, schema=PRICES)], schema)


def _of_row(row: Mapping[str, Any]) -> GroupPrice:
    price = Price(row["permutations"], row["sampling"], row["told_every"])
    variances = (math.nan if row[name] is None else row[name] for name in _VARIANCES)
    return GroupPrice(price, row["n_images"], *variances)


def _null_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
