"""Regressions without each pair, against regressions on the others."""

import numpy as np
import pytest
import torch

from shapray.shapley.coalitions import paired_coalitions
from shapray.shapley.ridge import Design, fit

N_PLAYERS, N_PAIRS = 10, 40


def design(n_rows: int, n_columns: int, blocks: list[slice]) -> Design:
    """The same pairs, filled up."""
    members = torch.zeros(1, n_rows, n_columns, dtype=torch.bool)
    drawn = paired_coalitions(N_PLAYERS, N_PAIRS, seed=1)
    members[0, :N_PAIRS, :N_PLAYERS] = torch.from_numpy(drawn)
    return Design(members, torch.tensor([N_PAIRS]), torch.tensor([N_PLAYERS]), blocks)


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("blocks", [[slice(0, 64)], [slice(0, 16), slice(16, 64)]])
def test_what_the_others_leave_of_a_pair(half, blocks):
    found = design(64, 16, blocks)
    targets = torch.zeros(1, 3, 64)
    targets[:, :, :N_PAIRS] = torch.from_numpy(np.random.default_rng(0).normal(size=(3, N_PAIRS)))
    ridges = torch.tensor([[[0.1, 0.5][: 2 - half]]])
    penalties = found.penalties(ridges)
    fits = fit(found, half, penalties, targets)

    x = design(64, 16, [slice(0, 64)]).features(slice(0, 64))[half][0].double()
    y = targets[0].T.double()
    for pair in (0, 7, N_PAIRS - 1):
        others = torch.arange(64) != pair
        gram = x[others].T @ x[others] + penalties[0, 0].double().diag()
        b = torch.linalg.solve(gram, x[others].T @ y[others])
        left = fits.left[0, 0, :, pair]
        torch.testing.assert_close(left.double(), y[pair] - x[pair] @ b, rtol=1e-3, atol=1e-4)
        weights = x[pair].float() @ fits.inverse[0, 0]
        without = fits.coefficients[0, 0] - left[:, None] * weights
        torch.testing.assert_close(without.double(), b.T, rtol=1e-2, atol=1e-3)


def test_what_is_filled_up_takes_no_part():
    small, large = design(64, 16, [slice(0, 64)]), design(96, 24, [slice(0, 96)])
    odd = small.features(slice(0, 64))[0]
    assert (odd[0, N_PAIRS:] == 0).all()
    assert (odd[0, :, N_PLAYERS:16] == 0).all()
    torch.testing.assert_close(
        large.gram(0)[0, :N_PLAYERS, :N_PLAYERS], small.gram(0)[0, :N_PLAYERS, :N_PLAYERS]
    )


def test_a_regression_without_a_solution_is_one_to_nothing():
    found = design(64, 16, [slice(0, 64)])
    penalties = -found.penalties(torch.ones(1, 1, 2))
    fits = fit(found, 0, penalties, torch.ones(1, 2, 64))
    assert (fits.coefficients == 0).all()
    assert (fits.left == 1).all()
