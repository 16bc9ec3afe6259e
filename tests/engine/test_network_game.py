"""Networks as games: what the split network computes is what the masked network computes."""

import pytest
import torch
from cases import assert_near, case, draw, hook_masked
from networks import ChannelsLastMlp, randomise
from plain import without

from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.find import find_groups
from shapray.network.index_maps import removable
from shapray.shapley.values import NAMES

# --- which groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flat", "deep"),
    [
        ("Vgg", {"features.0", "features.3", "features.7", "classifier.0"}, set()),
        ("Residual", {"block1.conv1", "block2.conv1"}, {"stem"}),
        ("Concat", {"branch1", "branch2", "mix", "conv3"}, {"conv1", "conv2"}),
        ("Separable", {"expand.0", "last"}, {"stem.0"}),
        ("Functional", {"conv2", "conv4", "fc1"}, {"conv1"}),
        ("SqueezeExcite", {"squeeze", "conv2"}, {"conv1"}),
        ("ChannelsLastMlp", {"up"}, set()),
        ("Gated", {"conv1"}, set()),
        ("Statement", {"conv1", "conv2"}, set()),
        ("ThreeClasses", {"conv1"}, set()),
        ("digits", {"conv1", "conv2", "conv3", "fc1"}, set()),
    ],
)
def test_the_groups_of_these_tests_are_there(name, flat, deep):
    """All that follows runs over a network's groups: here is which."""
    of_kind = {
        kind: {g.name for g in case(name).groups if g.flat == kind} for kind in (True, False)
    }
    assert flat <= of_kind[True]
    assert deep <= of_kind[False]


# --- the same outputs -----------------------------------------------------------------------------


def test_outputs_are_those_of_the_masked_network(network):
    for group in network.groups:
        images, coalitions = draw(len(network.images), group.n_units, 60)
        expected = hook_masked(network.model, group, network.images[images], coalitions)
        game = network.game(group)
        assert_near(game.outputs(images, coalitions), expected)
        assert_near(game.masked_outputs(images, coalitions), expected)
        # nothing that is kept between calls was overwritten
        assert torch.equal(game.outputs(images, coalitions), game.outputs(images, coalitions))
        assert_near(game.outputs(images, coalitions), expected)


def test_outputs_in_any_order_and_in_any_number_of_parts(network):
    for group in network.groups[:3]:
        images, coalitions = draw(len(network.images), group.n_units, 23)
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(1))]
        images[images == 1] = 0  # not all of them
        game = network.game(group)
        expected = game.masked_outputs(images, coalitions)
        for rows in (1, 3, 16):
            game.rows = rows
            assert_near(game.outputs(images, coalitions), expected)
        if game.sums is not None:
            game.sums.images_at_once = 1
            assert_near(game.outputs(images, coalitions), expected)
        assert game.outputs(images[:0], coalitions[:0]).shape == (0, expected.shape[1])


def test_outputs_are_those_of_the_pruned_network(network):
    for group in network.groups:
        every = torch.arange(len(network.images))
        _, coalitions = draw(1, group.n_units, 6)
        for coalition in coalitions[coalitions.any(1)]:
            removed = removable(group, (~coalition).nonzero()[:, 0].tolist())
            kept = torch.ones(group.n_units, dtype=torch.bool)
            kept[removed] = False
            pruned = without(network.model, network.example, {group.name: removed})
            with torch.inference_mode():
                expected = pruned(network.images)
            found = network.game(group).outputs(every, kept.expand(len(every), -1))
            assert_near(found, expected)


def test_reference_is_nobody_and_everybody(network):
    for group in network.groups:
        game = network.game(group)
        ends = torch.stack([torch.zeros(group.n_units), torch.ones(group.n_units)]).bool()
        for i in range(2):
            rows = ends[i].expand(len(network.images), -1)
            masked = hook_masked(network.model, group, network.images, rows)
            assert_near(game.reference[:, i], masked)
        with torch.inference_mode():
            assert_near(game.reference[:, 1], network.model(network.images))


# --- null players ---------------------------------------------------------------------------------


def test_an_inactive_unit_changes_nothing(network):
    """Whatever the coalition: its value may be left at 0 without looking."""
    for group in network.groups:
        game = network.game(group)
        if not group.flat:
            assert game.active.all()  # a masked consumer could wake it up
            continue
        images, coalitions = draw(len(network.images), group.n_units, 60)
        without = coalitions & game.active[images]
        with_them = coalitions | ~game.active[images]
        expected = hook_masked(network.model, group, network.images[images], with_them)
        found = hook_masked(network.model, group, network.images[images], without)
        assert_near(found, expected, 1e-6)


def test_dead_channels_are_found():
    """The first channels behind these BatchNorms are never positive."""
    for name, group in (("Vgg", "features.3"), ("Residual", "block1.conv1")):
        active = case(name).game(case(name).group(group)).active
        assert not active[:, :2].any()
        assert active[:, 2:].any(0).all()
    # hidden neurons differ by image
    active = case("digits").game(case("digits").group("fc1")).active
    assert len({tuple(row.tolist()) for row in active}) > 1
    hidden = {}
    model = case("digits").model
    handle = model.fc2.register_forward_pre_hook(lambda _, args: hidden.update(x=args[0]))
    with torch.inference_mode():
        model(case("digits").images)
    handle.remove()
    assert torch.equal(active, hidden["x"] != 0)


def test_active_units_of_a_layer_over_height_width_channels():
    """Of 4-dimensional inputs of a linear layer the units are the last dimension."""
    torch.manual_seed(1)
    images = case("ChannelsLastMlp").images
    model = randomise(ChannelsLastMlp())
    model.up.bias[:] -= 1.5  # many neurons are silent, not the same for all images
    group = next(g for g in find_groups(model, images[:1]) if g.name == "up")
    game = NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
        images, case("ChannelsLastMlp").labels, "neg_cross_entropy"
    )
    with torch.inference_mode():
        y = model.norm(model.depth(model.stem(images)).permute(0, 2, 3, 1))
        active = (model.up(y) > 0).any(2).any(1)
    assert 0 < active.sum() < active.numel()
    assert torch.equal(game.active, active)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NAMES)
def test_value_of_outputs(value):
    network = case("digits")
    group = network.group("conv3")
    labels = None if value == "neg_kl_divergence" else network.labels
    game = network.split(group).game(network.images, labels, value)
    images, coalitions = draw(len(network.images), group.n_units, 50)
    found = game.value(images, game.outputs(images, coalitions).double())
    logits = hook_masked(network.model, group, network.images[images], coalitions).double()
    target = network.labels[images]
    log_p = logits.log_softmax(1)
    chosen = log_p.gather(1, target[:, None])[:, 0]
    with torch.inference_mode():
        full = network.model(network.images).double().log_softmax(1)[images]
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    at_target = logits.gather(1, target[:, None])[:, 0]
    expected = {
        "neg_cross_entropy": chosen,
        "target_logit": at_target,
        "logit_margin": at_target - others,
        "target_probability": chosen.exp(),
        "top1": (at_target > others).double(),
        "neg_kl_divergence": -(full.exp() * (full - log_p)).sum(1),
    }[value]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_digits_are_recognised():
    """Guards the tests above against images or weights that are not the digits'."""
    with torch.inference_mode():
        right = case("digits").model(case("digits").images).argmax(1) == case("digits").labels
    assert right.sum() >= 5  # of 6
