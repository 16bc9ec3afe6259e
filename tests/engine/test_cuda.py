"""On a GPU: the CPU's values, and nothing that waits for the device while coalitions are left."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from cases import Case, assert_near, case, chains, draw

from shapray.config import Score
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.network.group import Group
from shapray.shapley.estimators import estimate
from shapray.shapley.pairs import Pairs
from shapray.shapley.permutations import Permutations

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

NAMES = ("Vgg", "Residual", "Concat", "Functional", "SqueezeExcite", "resnet18", "digits")


def on_gpu(network: Case, group: Group, **settings) -> NetworkGame:
    folded = copy.deepcopy(network.folded)  # a split moves it
    split = NetworkSplit(folded, group, network.example, device="cuda", **settings)
    return split.game(network.images, network.labels, "neg_cross_entropy")


@contextmanager
def waiting(times: int) -> Iterator[None]:
    """The device is waited for so many times."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(w.message) for w in caught) == times


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_values_are_those_of_the_cpu(name):
    """Over and over, in batches of many sizes."""
    network = case(name)
    for group in network.groups:
        exact, found = network.game(group), on_gpu(network, group)
        assert torch.equal(found.active, exact.active)
        for n_rows in (60, 60, 47, 58, 1):
            asked = draw(len(network.images), group.n_units, max(n_rows, 2))
            asked = tuple(part[:n_rows] for part in asked)
            right = exact.outputs(*asked)
            assert_near(found.outputs(*asked).cpu(), right)
            assert_near(found.masked_outputs(*asked).cpu(), right)
        for _ in range(2):
            asked = chains(exact, 2)
            assert_near(found.along(*asked).cpu(), exact.along(*asked))
            players = exact.active[0].nonzero()[:6, 0]
            values = [game.subset_values(0, players).cpu() for game in (found, exact)]
            assert_near(*values)


@pytest.mark.parametrize("estimator", ["exact", "permutation"])
@pytest.mark.parametrize("name", ["Vgg", "Residual", "digits"])
def test_estimates_are_those_of_the_cpu(name, estimator):
    network, scoring = case(name), Score(estimator=estimator, permutations=4)
    for group in [group for group in network.groups if group.n_units <= 16]:
        games = network.game(group), on_gpu(network, group)
        seeds = range(len(network.images))
        for right, found in zip(*(estimate(game, scoring, seeds) for game in games), strict=True):
            size = np.abs(right.shapley_value).max()
            np.testing.assert_allclose(found.shapley_value, right.shapley_value, atol=1e-4 * size)
            np.testing.assert_allclose(found.standard_error, right.standard_error, atol=1e-3 * size)


def test_float32_is_float32_whatever_the_process_is_set_to():
    """The same to the bit as where TensorFloat-32 is off everywhere; and that is put back."""
    network = case("resnet18")
    group, asked = network.groups[0], draw(len(network.images), network.groups[0].n_units, 40)
    game = on_gpu(network, group)
    found = [game.outputs(*asked)]
    before = torch.backends.cudnn.allow_tf32
    assert before, "PyTorch's default"
    torch.backends.cudnn.allow_tf32 = False
    try:
        found.append(on_gpu(network, group).outputs(*asked))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    assert torch.equal(*found)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 5e-3), ("bfloat16", 5e-2)])
def test_lower_precisions_are_near(precision, tolerance):
    network = case("resnet18")
    for group in network.groups:
        asked = draw(len(network.images), group.n_units, 40)
        right, game = (
            network.game(group).outputs(*asked),
            on_gpu(network, group, precision=precision),
        )
        for _ in range(3):
            assert_near(game.outputs(*asked).cpu(), right, tolerance)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["Vgg", "Residual", "digits"])
def test_nothing_in_the_loop_waits_for_the_device(name, precision):
    """An upload, a mask and a look at a value would each stop it."""
    network = case(name)
    n_images = len(network.images)
    for group in network.groups:
        game = on_gpu(network, group, precision=precision)
        ends, images = torch.zeros(n_images, 2, dtype=torch.float64), range(n_images)
        rows, coalitions = draw(n_images, group.n_units, 40)
        orders = chains(game, 2)
        players = game.active[0].nonzero()[:8, 0]
        for _ in range(3):
            with waiting(0):
                game.value(rows, game.outputs(rows, coalitions).double())
                game.masked_outputs(rows, coalitions)
                game.along(*orders)
                game.subset_values(0, players)
                chained = Permutations(game, images, 4, images, ends)
            with waiting(1):  # are all values finite?
                chained.evaluate()
            if game.active.sum(1).min() >= 2:
                with waiting(0):
                    pairs = Pairs(game, images, 4, images, ends)
                with waiting(1):
                    pairs.evaluate()


def test_a_gpu_without_the_fused_kernels_takes_others():
    network = case("resnet18")
    group = network.groups[0]
    asked = draw(len(network.images), group.n_units, 40)
    game = on_gpu(network, group, precision="tf32")
    tail = game.split.summed_tail
    right = game.outputs(*asked)
    assert tail.fused is not None

    def missing(*inputs: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to find an engine to execute this computation")

    tail.fused = missing
    for _ in range(2):
        assert_near(game.outputs(*asked), right, 5e-3)
    assert tail.fused is None
