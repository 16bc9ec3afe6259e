"""The tails in bfloat16, and which precision is taken."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from cases import Case, assert_near, case, chains, draw

from shapray.engine.network_game import NetworkGame
from shapray.engine.precision import NEAR, choose_precision, standard_errors_off
from shapray.shapley.estimators import Settings


def test_bfloat16_is_near_float32(network):
    for group in network.groups:
        game = network.game(group, precision="bfloat16")
        images, coalitions = draw(len(network.images), group.n_units, 40)
        expected = network.game(group).outputs(images, coalitions)
        found = game.outputs(images, coalitions)
        assert found.dtype == game.reference.dtype == torch.float32
        assert_near(found, expected, 0.05)
        asked = chains(game, 2)
        assert_near(game.along(*asked), network.game(group).along(*asked), 0.05)
        players = game.active[0].nonzero()[:5, 0]
        values = network.game(group).subset_values(0, players)
        found = game.subset_values(0, players)
        assert found.dtype == torch.float64
        assert (found - values).abs().max() <= 0.05 * game.reference.abs().max()


def test_a_group_prepared_in_bfloat16_leaves_the_folded_network_in_float32():
    network = case("Vgg")
    group = network.groups[0]
    images, coalitions = draw(5, group.n_units, 20)
    before = network.game(group).outputs(images, coalitions)
    network.game(group, precision="bfloat16").outputs(images, coalitions)
    assert torch.equal(network.game(group).outputs(images, coalitions), before)


# --- which one ------------------------------------------------------------------------------------


class Stopwatch:
    """Pretends that a batch in bfloat16 takes so much of the time of one in float32."""

    def __init__(self, share: float, *, slow_moments: tuple[int, ...] = ()) -> None:
        self.share, self.slow_moments = share, slow_moments
        self.asked: list[tuple[str, torch.dtype]] = []

    def __call__(self, game: NetworkGame) -> float:
        slow = 100.0 if len(self.asked) in self.slow_moments else 1.0
        self.asked.append((game.split.group.name, game.split.dtype))
        return slow * (self.share if game.split.dtype == torch.bfloat16 else 1.0)


def choose(network: Case, names: Sequence[str], *stopwatch: Stopwatch) -> str:
    groups = [network.group(name) for name in names]
    return choose_precision(
        network.folded, groups, network.example, "cpu", 2**31, *stopwatch, off=lambda *_: 0.0
    )


LONG_TAILS = ("stem", "block1.conv1")  # of "Residual": both have convolutions


@pytest.mark.parametrize(
    ("share", "chosen"), [(0.5, "bfloat16"), (0.75, "bfloat16"), (0.9, "float32"), (3, "float32")]
)
def test_bfloat16_is_chosen_where_it_is_much_faster(share, chosen):
    assert choose(case("Residual"), LONG_TAILS, Stopwatch(share)) == chosen


def test_the_longest_tail_and_a_middle_one_are_measured_in_both_precisions():
    stopwatch = Stopwatch(1.0)
    choose(case("Residual"), ("stem", "block1.conv1", "block2.conv1"), stopwatch)
    measured = Counter(stopwatch.asked)
    assert set(measured) == {
        (group, dtype) for group in LONG_TAILS for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(set(measured.values())) == 1


def test_a_slow_moment_decides_nothing():
    at_float32, at_bfloat16 = (0, 1), (2, 3)  # the first two games of either
    for share, moments, chosen in (
        (0.9, at_float32, "float32"),
        (0.5, at_bfloat16, "bfloat16"),
    ):
        stopwatch = Stopwatch(share, slow_moments=moments)
        assert choose(case("Residual"), LONG_TAILS, stopwatch) == chosen


def test_tails_without_a_convolution_stay_in_float32():
    """They are bound by memory: a split keeps them in float32 whatever it is asked for."""
    assert choose(case("digits"), ["fc1"], Stopwatch(0.1)) == "float32"


def test_what_is_measured_is_one_of_the_two():
    assert choose(case("digits"), ["conv1", "conv2"]) in {"float32", "bfloat16"}


def test_a_network_that_cannot_be_traced_runs_in_float32():
    network, stopwatch = case("Residual"), Stopwatch(0.1)
    untraced = network.model
    found = choose_precision(untraced, network.groups, network.example, "cpu", 2**31, stopwatch)
    assert found == "float32"
    assert stopwatch.asked == []


# --- how far it is off ----------------------------------------------------------------------------


def test_bfloat16_that_is_far_off_is_not_chosen_however_fast():
    """One group's values are enough."""
    network = case("Residual")
    groups = [network.group(name) for name in LONG_TAILS]
    for far, chosen in (
        ((), "bfloat16"),
        (("stem",), "float32"),
        (("block1.conv1",), "float32"),
    ):

        def off(low: NetworkGame, exact: NetworkGame, far: tuple[str, ...] = far) -> float:
            assert (low.split.dtype, exact.split.dtype) == (torch.bfloat16, torch.float32)
            return NEAR * (1.1 if low.split.group.name in far else 0.9)

        asked = network.folded, groups, network.example, "cpu", 2**31, Stopwatch(0.1), off
        assert choose_precision(*asked) == chosen


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (Settings("hybrid", 8), "bfloat16"),
        (Settings("hybrid", "auto"), "bfloat16"),
        (Settings("hybrid", 64), "float32"),  # its standard errors are smaller
        (Settings("exact"), "float32"),  # it has none
    ],
)
def test_the_jobs_own_standard_errors_count(asked, chosen):
    network = case("Residual")
    found = choose_precision(
        network.folded,
        [network.group(name) for name in LONG_TAILS],
        network.example,
        "cpu",
        2**31,
        Stopwatch(0.1),
        lambda *_: 0.5 * NEAR,
        sampling=asked,
    )
    assert found == chosen


def test_how_far_values_are_off_is_measured_in_standard_errors():
    network = case("digits")
    group = network.group("conv1")
    exact, low = network.game(group), network.game(group, precision="bfloat16")
    assert standard_errors_off(exact, exact) == 0
    assert 0 < standard_errors_off(low, exact) < 1
    moved = network.game(group)
    moved.value = lambda images, outputs: 2 * exact.value(images, outputs)
    assert standard_errors_off(moved, exact) > 1
