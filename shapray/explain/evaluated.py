"""Values of any coalitions of a game, a bounded number of outputs at once."""

import numpy as np
import torch
from torch import Tensor

from shapray.shapley.game import DOUBLE_ROWS, OUTPUT_BYTES, Game, check_finite


def values_of(game: Game, images: Tensor, outputs: Tensor) -> Tensor:
    """Values of outputs, in float64.

    Args:
        images: (n_rows,) int64.
        outputs: (n_rows, n_outputs), on any device.
    Returns:
        (n_rows,) float64, where the outputs are.
    """
    parts = zip(images.split(DOUBLE_ROWS), outputs.split(DOUBLE_ROWS), strict=True)
    found = [game.value(index, part.double()) for index, part in parts]
    return torch.cat(found) if found else outputs.new_empty(0, dtype=torch.float64)


def coalition_values(game: Game, images: np.ndarray, coalitions: np.ndarray) -> np.ndarray:
    """Values of coalitions.

    Args:
        images: (n_rows,) int64, ascending.
        coalitions: (n_rows, n_players) bool.
    Returns:
        (n_rows,) float64.
    Raises:
        NonFiniteValue: with the coalition.
    """
    at_once = max(1, OUTPUT_BYTES // (4 * game.reference.shape[2] + game.n_players))
    index, kept = torch.from_numpy(images), torch.from_numpy(coalitions)
    parts = zip(index.split(at_once), kept.split(at_once), strict=True)
    found = [values_of(game, rows, game.outputs(rows, part)) for rows, part in parts if len(rows)]
    values = torch.cat(found) if found else torch.empty(0, dtype=torch.float64)
    check_finite(values, lambda i: (int(images[i]), coalitions[i].nonzero()[0].tolist()))
    return values.cpu().numpy()


def end_values(game: Game) -> np.ndarray:
    """Values of the empty and the full coalition of every image, (n_images, 2) float64.

    Raises:
        NonFiniteValue: with the coalition.
    """
    both = torch.arange(len(game.active)).repeat_interleave(2)
    values = values_of(game, both, game.reference.flatten(0, 1))
    check_finite(values, lambda i: (i // 2, list(range(game.n_players)) if i % 2 else []))
    return values.view(-1, 2).cpu().numpy()
