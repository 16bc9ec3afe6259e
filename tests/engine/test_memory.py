"""Batches as large as the memory lets them be."""

import pytest
import torch
from cases import assert_near, case, chains, draw
from networks import Modest, randomise, twins
from torch import Tensor

from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.find import find_groups


def test_tiny_memory(network):
    """The bound is smaller than the process itself: one row at a time, without tables."""
    for group in network.groups[:2]:
        game = network.game(group, memory=2**20)
        assert game.rows == 1
        assert game.sums is None
        images, coalitions = draw(len(network.images), group.n_units, 10)
        full = network.game(group)
        assert_near(game.outputs(images, coalitions), full.outputs(images, coalitions), 1e-5)
        asked = chains(game, 1)
        assert_near(game.along(*asked), full.along(*asked))
        players = full.active[0].nonzero()[:4, 0]
        assert_near(game.subset_values(0, players), full.subset_values(0, players))


def hungry(x: Tensor) -> Tensor:
    """Asks for more memory than any machine has as soon as the batch is larger than 8."""
    if len(x) > 8:
        torch.empty(2**58)
    return x * 1.5


torch.fx.wrap("hungry")


class Hungry(Modest):
    def forward(self, x):
        return self.head(hungry(self.conv2(torch.relu(self.conv1(x))).relu().mean((2, 3))))


def test_out_of_memory_halves_the_batch():
    hungry_one, modest = twins(Hungry, Modest)
    images, labels = case("Vgg").images, case("Vgg").labels
    (group,) = [g for g in find_groups(modest, images[:1]) if g.name == "conv1"]
    games = [
        NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
            images, labels, "neg_cross_entropy"
        )
        for model in (hungry_one, modest)
    ]
    assert games[1].rows > 8
    rows, coalitions = draw(5, group.n_units, 60)
    assert_near(games[0].outputs(rows, coalitions), games[1].outputs(rows, coalitions), 1e-5)
    assert 4 < games[0].rows <= 8
    for call in (
        lambda game: game.along(*chains(game, 3)),
        lambda game: game.subset_values(0, torch.arange(6)),
    ):
        games[0].rows = games[1].rows  # as in a fresh game
        assert_near(call(games[0]), call(games[1]), 1e-5)
        assert 4 < games[0].rows <= 8


class Greedy(Modest):
    """Out of memory whatever the batch."""

    def forward(self, x):
        return super().forward(x) + starving(x)


def starving(x: Tensor) -> Tensor:
    if starving.armed:  # the network was sound when it was planned
        torch.empty(2**58)
    return x.new_zeros(())


starving.armed = False
torch.fx.wrap("starving")


def test_out_of_memory_with_a_single_row_is_an_error():
    images = case("Vgg").images
    model = randomise(Greedy())
    group = next(g for g in find_groups(model, images[:1]) if g.name == "conv1")
    game = NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
        images, case("Vgg").labels, "neg_cross_entropy"
    )
    starving.armed = True
    try:
        with pytest.raises(RuntimeError, match="memory"):
            game.outputs(*draw(5, group.n_units, 20))
    finally:
        starving.armed = False
