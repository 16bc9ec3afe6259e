"""The tails in bfloat16, and which precision is taken."""

import torch
from cases import assert_near, case, chains, draw


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
