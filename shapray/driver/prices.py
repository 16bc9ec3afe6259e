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
from shapray.config import Score
from shapray.errors import StorageError
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
_FINGERPRINT = b"shapray.fingerprint"
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


def pilot_images(labels: Tensor | None, n_images: int) -> tuple[int, ...]:
    """Places of the images that a pilot looks at, of all labels."""
    n = min(PILOT_IMAGES, max(FEWEST_PILOT_IMAGES, n_images // PILOT_SHARE))
    return tuple(spread(labels, n_images, n).tolist())


def by_pilot(score: Score, found: Pilot, n_images: int, to_spare: bool) -> GroupPrice:
    """A group's price.

    Args:
        n_images: that there are.
        to_spare: how many of them are taken goes by the error that is left.
    """
    option = found.best() if to_spare else found.least(n_images, score.target_error)
    return GroupPrice(option.price, n_images, found.variance, option.variance, found.spread)


def as_asked(price: Price, found: Pilot, n_images: int) -> GroupPrice:
    """A price that was not chosen, and what a pilot says of it."""
    return GroupPrice(price, n_images, found.variance, found.sampling_at(price), found.spread)


def chosen(
    groups: Sequence[Group],
    tail_macs: Mapping[str, int],
    labels: Tensor | None,
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
        labels: of the calibration images.
        n_images: that there are.
        run: has tasks done; calls what it is given with each result.
        to_spare: see `by_pilot`.
    """
    usual = GroupPrice(usual_price(score), n_images)
    prices = {group.name: usual for group in groups}
    if not is_piloted(score, n_images):
        return prices, []
    places = pilot_images(labels, n_images)
    tasks = [
        PilotTask(group.name, places, precision, cost)
        for group in groups
        for cost in [float(len(places) * group.n_units * max(1, tail_macs[group.name]))]
    ]

    def receive(piloted: Piloted) -> None:
        prices[piloted.task.group] = by_pilot(score, piloted.pilot, n_images, to_spare)

    return prices, run(tasks, receive)


def rounded(n_images: float, images_per_task: int) -> int:
    """To whole tasks, so that the tasks of fewer images are among those of more."""
    return math.ceil(n_images / images_per_task) * images_per_task


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


def publish_prices(store: RunDirectory, prices: Mapping[str, GroupPrice], fingerprint: str) -> None:
    """Raises StorageError."""
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
    schema = PRICES.with_metadata({_FINGERPRINT: fingerprint.encode()})
    store.publish_table(names.PRICES, [pa.Table.from_pylist(rows, schema=PRICES)], schema)


def _of_row(row: Mapping[str, Any]) -> GroupPrice:
    price = Price(row["permutations"], row["sampling"], row["told_every"])
    variances = (math.nan if row[name] is None else row[name] for name in _VARIANCES)
    return GroupPrice(price, row["n_images"], *variances)


def _null_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value
