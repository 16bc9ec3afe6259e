"""What the parts of a job cost: the times that a survey measures, and what follows from them."""

from dataclasses import dataclass

import numpy as np

from shapray.shapley.pilot import Pilot

MIN_PERMUTATIONS, MAX_PERMUTATIONS = 2, 1024  # that a budget chooses among


@dataclass(frozen=True)
class GroupCosts:
    """Times of one group's work, in seconds.

    Attributes:
        prepare: to split the network, once per worker.
        image: head of the network, per image.
        tables: the units' contributions, each time that an image comes into work.
        rows: permutations' worth of an image that is in work at once.
        coalition: per coalition that is sampled.
        permutations: numbers of permutations at which `books` were timed.
        books: everything around the network for an image that is sampled: coalitions drawn,
            values, surrogate.
        subset_image, subset: per image that is exact, and per coalition of it.
        row: per image, to write its row.
        aggregate: per shard, to read and sum it up.
        shard_bytes, scores_bytes, label_bytes: of a shard, of the group's rows in the score
            table, and of its rows in the class table for one label.
    """

    prepare: float
    image: float
    tables: float
    rows: int
    coalition: float
    permutations: tuple[int, ...]
    books: tuple[float, ...]
    subset_image: float
    subset: float
    row: float
    aggregate: float
    shard_bytes: int
    scores_bytes: int
    label_bytes: int

    def seconds(
        self, exact: np.ndarray, n_evaluations: np.ndarray, permutations: int, in_pairs: bool = True
    ) -> np.ndarray:
        """(n_images,) bool and number of evaluations -> (n_images,) seconds.

        Args:
            in_pairs: of coalitions, where there are enough permutations for that.
        """
        enumerated = self.subset_image + self.subset * n_evaluations
        in_work = max(1.0, permutations / self.rows)
        books = self.around(permutations)
        if not in_pairs:  # they grow with the permutations, and there is no fit
            books = self.around(MIN_PERMUTATIONS) * permutations / MIN_PERMUTATIONS
        sampled = self.tables * in_work + self.coalition * n_evaluations + books
        return self.image + self.row + np.where(exact, enumerated, sampled)

    def around(self, permutations: int) -> float:
        """All around the network for a sampled image; interpolated between the numbers timed,
        beyond the last along the last line."""
        at, seconds = self.permutations, self.books
        if permutations <= at[-1] or len(at) == 1:
            return float(np.interp(permutations, at, seconds))
        slope = (seconds[-1] - seconds[-2]) / (at[-1] - at[-2])
        return seconds[-1] + slope * (permutations - at[-1])


@dataclass(frozen=True)
class Survey:
    """What was counted and timed.

    Attributes:
        device: ``cpu`` or ``cuda``.
        images: indices of the calibration images that were counted, ascending.
        n_active: (n_counted, n_groups), their active units.
        precision: of the scoring.
        load, look, forward: per image: to read it; to run the network with the active units
            counted; to run it and compare with the label.
        network: to make a smaller network.
        groups: by name.
        pilots: what some images tell of each of them; empty if that was not asked for.
    """

    device: str
    images: np.ndarray
    n_active: np.ndarray
    precision: str
    load: float
    look: float
    forward: float
    network: float
    groups: dict[str, GroupCosts]
    pilots: dict[str, Pilot]
