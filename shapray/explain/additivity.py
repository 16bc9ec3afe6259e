"""How much of value(all) - value(none) the units explain one by one, at both ends of the game.

Of an additive game the marginal contributions sum to value(all) - value(none), wherever they are
taken. What their sums are at the empty coalition (each unit alone) and at the full one (each unit
the last to come, which is leave-one-out) says how far a game is from that: by less than the
difference where units stand in for each other, by more where they need each other. The Shapley
values always sum to it (Shapley 1953). All exact, for two coalitions per active unit; a null player
adds 0.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shapray.explain.evaluated import coalition_values, end_values
from shapray.shapley.game import Game
from shapray.storage.explained import ADDITIVITY


@dataclass(frozen=True)
class Additivity:
    """Marginal contributions at both ends, on images.

    Attributes:
        value_all, value_none: (n_images,) float64.
        alone: (n_images, n_units) float64, value({unit}) - value(none).
        last: (n_images, n_units) float64, value(all) - value(all but the unit).
        n_evaluations: (n_images,) int64, coalitions whose value was computed.
    """

    value_all: np.ndarray
    value_none: np.ndarray
    alone: np.ndarray
    last: np.ndarray
    n_evaluations: np.ndarray


def additivity(game: Game) -> Additivity:
    """Marginal contributions to the empty and to the full coalition.

    Raises:
        NonFiniteValue: a coalition's value is NaN or infinite.
    """
    active = game.active.numpy()
    value_none, value_all = end_values(game).T
    images, units = active.nonzero()
    own = np.eye(game.n_players, dtype=bool)[units]  # (n_rows, n_units)
    alone, last = np.zeros((2, *active.shape))
    alone[images, units] = coalition_values(game, images, own) - value_none[images]
    last[images, units] = value_all[images] - coalition_values(game, images, ~own)
    return Additivity(value_all, value_none, alone, last, 2 * active.sum(1) + 2)


def additivity_rows(group: str, found: Additivity) -> pa.Table:
    """The row of `ADDITIVITY`: means over images; errors null for a single one."""
    n = len(found.value_all)
    alone, last = found.alone.sum(1), found.last.sum(1)

    def error(of_images: np.ndarray) -> float | None:
        return of_images.std(ddof=1) / n**0.5 if n > 1 else None

    row = {
        "group": group,
        "n_images": n,
        "value_all": found.value_all.mean(),
        "value_none": found.value_none.mean(),
        "alone": alone.mean(),
        "last": last.mean(),
        "alone_error": error(alone),
        "last_error": error(last),
    }
    return pa.Table.from_pylist([row], schema=ADDITIVITY)
