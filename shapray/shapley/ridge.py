"""Ridge regressions on pairs of coalitions, with all of them and without each.

With a row of features X_i for each pair, targets y, and the penalties on the diagonal of P, let
W = X (X'X + P)^-1. The coefficients are b = W'y, and those without pair i are b - e_i W_i, where

    e_i = (y_i - X_i b) / (1 - X_i W_i)

is what they leave of y_i (Sherman and Morrison 1950): one factorisation serves all pairs.

Half the difference of the outputs of a coalition and its complement is *odd* in the coalition, half
the sum is *even*, and so are the features: odd powers of the size, and the memberships with even
ones, are odd. The two regressions do not mix.

Images are fitted together, filled up with zeros to the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

DEGREE = 5  # of the polynomial in the size
N_POWERS = (DEGREE + 1) // 2  # odd ones, and even ones
FILLED = 4  # columns that they take, the last one empty: processors load as many at once
SIZE_RIDGE = 1e-4  # penalty of their coefficients


class Design:
    """Features of the coalitions of some images.

    Args:
        members: (n_images, n_rows, n_columns) bool, False where they are filled up.
        n_rows: (n_images,) int64, those of each image.
        n_players: (n_images,) int64, columns of each image.
        blocks: rows whose features are there at once.

    Attributes:
        size: (n_images, n_rows) float32.
        tilt: (n_images, n_rows) float32, 2 size / n_players - 1.
        powers: (n_images, n_rows, FILLED) float32 twice, odd ones and even ones.
        is_player: (n_images, n_columns) bool.
    """

    def __init__(
        self, members: Tensor, n_rows: Tensor, n_players: Tensor, blocks: Sequence[slice]
    ) -> None:
        self.members, self.n_players, self.blocks = members, n_players, blocks
        self.device = members.device
        self.inside = torch.arange(members.shape[1], device=self.device) < n_rows[:, None]
        self.is_player = torch.arange(members.shape[2], device=self.device) < n_players[:, None]
        self.size = members.sum(2).float()
        self.fraction = self.size / n_players[:, None]
        self.tilt = 2 * self.fraction - 1
        powers = (_powers(self.tilt) * self.inside[..., None]).unflatten(2, (N_POWERS, 2))
        even, odd = torch.nn.functional.pad(powers, (0, 0, 0, FILLED - N_POWERS)).unbind(3)
        self.powers = odd, even
        self._last: tuple[slice, tuple[Tensor, Tensor]] | None = None

    def deviations(self, rows: slice) -> Tensor:
        """1[u in S] - |S| / k, (n_images, n, n_columns) float32; 0 where they are filled up."""
        apart = self.members[:, rows].float() - self.fraction[:, rows, None]
        return apart * (self.inside[:, rows, None] & self.is_player[:, None])

    def features(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Odd and even features of some rows, float32, (n_images, n, n_features) each: a block of
        columns for each effect of the players, then `FILLED` of the size."""
        if self._last is None or self._last[0] != rows:
            deviations, tilt = self.deviations(rows), self.tilt[:, rows, None]
            odd, even = (powers[:, rows] for powers in self.powers)
            self._last = (
                rows,
                (
                    torch.cat([deviations, tilt**2 * deviations, odd], 2),
                    torch.cat([tilt * deviations, even], 2),
                ),
            )
        return self._last[1]

    def gram(self, half: int) -> Tensor:
        """X'X: (n_images, n_features, n_features); half: 0 odd, 1 even."""
        total = torch.zeros((), device=self.device)
        for rows in self.blocks:
            x = self.features(rows)[half]
            total = total + x.mT @ x
        return total

    def penalties(self, ridges: Tensor) -> Tensor:
        """(n_choices, n_images, n_features) from those of each effect, (n_choices, n_images, n)."""
        effects = ridges.repeat_interleave(self.members.shape[2], 2)
        return torch.nn.functional.pad(effects, (0, FILLED), value=SIZE_RIDGE)


@dataclass(frozen=True)
class Fits:
    """Ridge regressions of each image, one for each choice of penalties.

    Attributes:
        inverse: (n_choices, n_images, n_features, n_features), (X'X + P)^-1.
        coefficients: (n_choices, n_images, n_targets, n_features), of all rows.
        leverage: (n_choices, n_images, n_rows), X_i W_i.
        left: (n_choices, n_images, n_targets, n_rows), what the other rows leave of a row.
    """

    inverse: Tensor
    coefficients: Tensor
    leverage: Tensor
    left: Tensor


def fit(design: Design, half: int, penalties: Tensor, targets: Tensor) -> Fits:
    """Regressions on one half of the features.

    Args:
        half: 0 odd, 1 even.
        penalties: (n_choices, n_images, n_features).
        targets: (n_images, n_targets, n_rows).
    """
    inverse = _inverse(design.gram(half) + penalties.diag_embed())
    blocks = design.blocks
    coefficients = torch.zeros((), device=inverse.device)
    leverages = []
    for rows in blocks:
        x = design.features(rows)[half]
        weights = x @ inverse
        leverages.append((weights * x).sum(3))
        coefficients = coefficients + targets[:, :, rows] @ weights
    fitted = [coefficients @ design.features(rows)[half].mT for rows in blocks]
    leverage = torch.cat(leverages, 2)
    left = (targets - torch.cat(fitted, 3)) / (1 - leverage)[:, :, None]
    return Fits(inverse, coefficients, leverage, left)


def _inverse(matrices: Tensor) -> Tensor:
    """0 where that fails, which makes for a fit, if a bad one."""
    factor, failed = torch.linalg.cholesky_ex(matrices)
    usable = (failed == 0)[..., None, None]
    identity = torch.eye(matrices.shape[-1], device=matrices.device)
    return torch.cholesky_inverse(factor.where(usable, identity)) * usable


def _powers(tilt: Tensor) -> Tensor:
    """Chebyshev polynomials of the size, (...) -> (..., DEGREE + 1), odd ones odd and all 1 at 1;
    nearly orthogonal under the sizes' distribution."""
    angle = tilt.clamp(-1, 1).arccos()
    return torch.cos(torch.arange(DEGREE + 1, device=tilt.device) * angle[..., None])
