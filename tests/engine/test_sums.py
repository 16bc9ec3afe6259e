"""The summed way into a tail: chains and subsets come to what any coalitions come to."""

import pytest
import torch
from cases import assert_near, case, chains

from shapray.shapley.game import Game


def test_chains_are_evaluated_like_any_coalitions(network):
    for group in network.groups:
        game = network.game(group)
        asked = chains(game, 3)
        expected = Game.along(game, *asked)
        for _ in range(2):  # twice: nothing that is kept was overwritten
            assert_near(game.along(*asked), expected)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_chains_in_small_batches(network, rows):
    for group in network.groups:
        game = network.game(group)
        asked = chains(game, 3 if group.n_units < 64 else 1)
        expected = game.along(*asked)
        game.rows = rows
        assert_near(game.along(*asked), expected, 1e-5)


def test_flat_groups_of_ordinary_networks_take_the_summed_way():
    """What makes chains fast; without it all tests of values would still pass."""
    ways = {
        (name, group): case(name).game(case(name).group(group)).sums is not None
        for name, group in [
            ("Vgg", "features.0"),
            ("Vgg", "features.7"),
            ("Vgg", "classifier.0"),
            ("Residual", "block1.conv1"),
            ("Residual", "block2.conv1"),
            ("Functional", "conv2"),
            ("Concat", "mix"),
            ("resnet18", "layer3.0.conv1"),
            ("digits", "conv3"),
            ("digits", "fc1"),
        ]
    }
    assert all(ways.values()), ways
    deep = [case("Residual").group("stem"), case("Functional").group("conv1")]
    assert not any(group.flat for group in deep)
    assert case("Residual").game(deep[0]).sums is None


def test_chains_of_some_of_the_images(network):
    """Images that are asked for are not the first ones, and not next to each other."""
    for group in network.groups:
        game = network.game(group)
        images, orders, wanted = chains(game, 2)
        some = (images == 1) | (images == 4)
        asked = images[some], orders[some], wanted[some]
        assert_near(game.along(*asked), Game.along(game, *asked))


def test_chains_where_tables_have_room_for_a_single_image(network):
    for group in network.groups:
        game = network.game(group)
        if game.sums is None:
            continue
        asked = chains(game, 3)
        expected = game.along(*asked)
        game.sums.images_at_once = 1
        assert_near(game.along(*asked), expected, 1e-5)


def test_chains_nobody_asks_for(network):
    """As with images of a single active unit, whose coalitions are both known already."""
    for group in network.groups:
        game = network.game(group)
        images, orders, wanted = chains(game, 2)
        found = game.along(images, orders, torch.zeros_like(wanted))
        assert found.shape == (0, game.reference.shape[2])


@pytest.mark.parametrize("rows", [None, 1, 5])
def test_subsets_are_evaluated_like_any_coalitions(network, rows):
    for group in network.groups:
        game = network.game(group)
        image = 2
        players = game.active[image].nonzero()[:, 0]
        players = players[torch.randperm(len(players), generator=torch.Generator().manual_seed(0))]
        for n in (0, 1, 7):
            expected = Game.subset_values(game, image, players[:n])
            small = network.game(group)
            small.rows = rows or small.rows
            assert_near(small.subset_values(image, players[:n]), expected)


def test_all_subsets_of_many_players():
    """More than are tabulated at once (two tables of 8 players each): 2**17 coalitions."""
    group = case("digits").group("conv2")
    game = case("digits").game(group, "target_logit")
    assert game.sums is not None
    players = game.active[0].nonzero()[:17, 0]
    assert len(players) == 17
    found = game.subset_values(0, players)
    random = torch.randint(2**17, (2000,), generator=torch.Generator().manual_seed(0))
    random[0], random[1] = 0, 2**17 - 1
    coalitions = torch.zeros(len(random), group.n_units, dtype=torch.bool)
    coalitions[:, players] = (random[:, None] >> torch.arange(17)) & 1 > 0
    images = torch.zeros(len(random), dtype=torch.int64)
    expected = game.value(images, game.outputs(images, coalitions).double())
    assert_near(found[random], expected)
