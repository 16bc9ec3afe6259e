"""Fits of the outputs of some images' coalitions, and of the values of these fits.

`surrogate` says what they are good for."""

from collections.abc import Callable

import torch
from torch import Tensor

from shapray.shapley.ridge import FILLED, Design, fit

# Penalties of a player's effects a, c and b for eight permutations' worth of pairs; each pair takes
# the best choice for the others.
ODD_RIDGES, EVEN_RIDGES = ((0.01, 0.25), (1.0, 1.0)), ((0.25,), (1.0,))

# Fits of the values have to be better than those of the outputs by a margin: twofold with so many
# pairs, 1 + 1 / 16 with four times as many. Of few pairs one cannot tell, and choosing wrongly
# costs more than it gives.
CAUTION = 27

Value = Callable[[Tensor, Tensor], Tensor]
"""(images (n_rows,), outputs (n_rows, n_outputs)) -> (n_rows,)"""


class OutputFits:
    """Fits of images' outputs or, where that is closer, of their values, with and without each
    pair; and of the fits' values.

    Args:
        design: of the pairs; the first row is the full and the empty coalition.
        targets: odd and even halves of the outputs, (n_images, n_outputs, n_rows) each.
        odd_values: (n_images, n_rows) float64, odd half of the values.
        number: (n_images,) int64, of the image, as `value` takes it.
        value: of outputs.

    Attributes:
        residual: (n_images, n_rows) float32, odd half of the value beside that of the fit without
            the row.
        by_values: (n_images, n_rows) bool, whether the fit without the row is one of the values.
        linear: (n_images, 1, n_odd_features), coefficients of the game nearest to the fits' values.
        beyond: (n_images, n_rows) float32, odd half of the fits' values beside the linear game
            without the row.
    """

    def __init__(
        self,
        design: Design,
        targets: tuple[Tensor, Tensor],
        odd_values: Tensor,
        number: Tensor,
        value: Value,
    ) -> None:
        self.design, self.number, self.value = design, number, value
        self.every = torch.arange(len(number), device=number.device)
        is_pair = design.inside.clone()
        is_pair[:, 0] = False
        n_pairs = is_pair.sum(1)
        # the penalties are those of eight permutations' worth of pairs
        scale = (n_pairs / (4 * (design.n_players - 1)))[:, None]
        targets = torch.cat([targets[0], odd_values.float()[:, None]], 1), targets[1]
        self.halves = [
            fit(
                design,
                half,
                design.penalties(scale * torch.tensor(ridges, device=scale.device)[:, None]),
                targets[half],
            )
            for half, ridges in enumerate((ODD_RIDGES, EVEN_RIDGES))
        ]
        odd, even = (y - fits.left for y, fits in zip(targets, self.halves, strict=True))
        by_outputs = self.odd_value(odd[:, :, :-1], even, self.every.expand(len(odd), -1))
        fitted = torch.cat([by_outputs, odd[:, :, -1]])
        residual = (odd_values - fitted).float() * is_pair  # (n_choices, n_images, n_rows)
        squares = residual.square()
        squares[len(odd) :] *= (1 + (CAUTION / n_pairs) ** 2)[:, None]
        total = squares.sum(2, keepdim=True)
        chosen = (total - squares).argmin(0)  # (n_images, n_rows); its own takes no part
        self.by_values, self.ridge = chosen >= len(odd), chosen % len(odd)
        self.residual = residual.gather(0, chosen[None])[0]
        fitted = fitted.gather(0, chosen[None])[0].where(is_pair, odd_values.float())
        self.linear, beyond = self._linear(fitted, total.argmin(0)[:, 0] % len(odd))
        self.beyond = beyond * is_pair

    def _linear(self, fitted: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
        """The game sum_u (a_u + c_u t^2) d_u(S) + polynomial(t) nearest to the fits' values, by the
        regression of one of the choices of ridges; and what the other rows leave of a row."""
        inverse = self.halves[0].inverse[choice, self.every]
        leverage = self.halves[0].leverage[choice, self.every]
        blocks = self.design.blocks
        moment = torch.zeros_like(inverse[:, :1])
        for rows in blocks:
            moment = moment + fitted[:, None, rows] @ self.design.features(rows)[0]
        linear = moment @ inverse
        found = torch.cat([linear @ self.design.features(rows)[0].mT for rows in blocks], 2)
        return linear, (fitted - found[:, 0]) / (1 - leverage)

    def without(self, which: Tensor, rows: Tensor, names: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the fits without a row, for players that change their names.

        Args:
            which: (n,) int64, of the images.
            rows: (n, n_fits) int64, the one that each fit lacks.
            names: (n, n_fits, n_columns) int64, the player that each column stands for.
        Returns:
            odd and even ones, (n, n_fits, n_outputs, n_features) each; of the odd ones those of the
            value and of the linear game come last, as of two more outputs.
        """
        n_fits, image = rows.shape[1], which[:, None]
        ridge, every = self.ridge[image, rows], slice(n_fits)
        lacking = Design(
            self.design.members[image, rows],
            torch.full_like(which, n_fits),
            self.design.n_players[which],
            [every],
        )
        found = []
        for features, fits in zip(lacking.features(every), self.halves, strict=True):
            weights = features @ fits.inverse[:, which]  # (n_choices, n, n_fits, n_features)
            weights = weights.gather(0, ridge[None, ..., None].expand_as(weights[:1]))[0]
            left = fits.left[ridge, image, :, rows]
            found.append(fits.coefficients[ridge, image] - left[..., None] * weights[:, :, None])
        odd, even = found
        linear = self.linear[which][:, None].expand(-1, n_fits, -1, -1)
        return _renamed(torch.cat([odd, linear], 2), names), _renamed(even, names)

    def odd_value(self, odd: Tensor, even: Tensor, which: Tensor) -> Tensor:
        """Half the difference of the values of coalitions and their complements.

        Args:
            odd, even: (..., n_outputs, n) halves of their outputs.
            which: (...) int64, of the images.
        Returns:
            (..., n).
        """
        shape = *which.shape, odd.shape[-1]
        odd, even = odd.movedim(-2, 0), even.movedim(-2, 0)  # outputs first: they are reduced so
        both = odd.new_empty(len(odd), 2, *shape)
        torch.add(even, odd, out=both[:, 0])
        torch.sub(even, odd, out=both[:, 1])
        index = self.number[which][..., None].expand(shape).flatten().repeat(2)
        first, second = self.value(index, both.flatten(1).T).view(2, *shape)
        return (first - second) / 2


def _renamed(coefficients: Tensor, names: Tensor) -> Tensor:
    """Coefficients of columns that stand for other players, (n, n_fits, n_outputs, n_features)."""
    effects = coefficients[..., :-FILLED].unflatten(3, (-1, names.shape[2]))
    effects = effects.gather(4, names[:, :, None, None].expand_as(effects))
    return torch.cat([effects.flatten(3), coefficients[..., -FILLED:]], 3)
