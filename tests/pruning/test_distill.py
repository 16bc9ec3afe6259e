"""A cut network trained with the whole one as its teacher."""

import copy
import math

import pytest
import torch
from cases import DATA
from networks import NETWORKS, randomise
from plain import without
from torch import nn

from shapray.config import Images, Model, Transform
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.pruning.evaluate import tally
from shapray.pruning.repair.augment import blend, look_alike, move, views
from shapray.pruning.repair.blocks import find_blocks
from shapray.pruning.repair.distill import distill
from shapray.zoo import resnet20


def digits(split, n):
    section = Images(
        source="parquet", path=str(DATA / "digits.parquet"), where={"split": split}, limit=n
    )
    found = open_images(section, Transform(mode="L"), f"data.{split}")
    return found.load(0, n), found.labels


@pytest.fixture(scope="module")
def images():
    return digits("calibration", 80)


@pytest.fixture(scope="module")
def whole():
    return build_model(
        Model(factory="shapray.zoo:digits_cnn", weights=str(DATA / "digits_cnn.safetensors"))
    ).requires_grad_(False)


@pytest.fixture
def cut(whole, images):
    removed = {"conv1": range(16), "conv2": range(0, 32, 2), "conv3": range(8)}
    return without(whole, images[0][:1], removed)


def divergence(whole, cut, images):
    with torch.no_grad():
        right, found = (network(images).log_softmax(1) for network in (whole, cut))
    return (right.exp() * (right - found)).sum(1).mean().item()


def test_what_was_cut_is_learned_again(whole, cut, images):
    x, _ = images
    strangers, labels = digits("evaluation", 200)
    before = divergence(whole, cut, strangers), tally(cut, strangers, labels).top1
    done = distill(whole, cut, x, steps=40, lr=2e-3)
    assert done.steps == 40
    assert done.loss_after < 0.7 * done.loss_before
    assert divergence(whole, cut, strangers) < 0.6 * before[0]
    assert tally(cut, strangers, labels).top1 > before[1] + 0.1


def test_labels_are_learned_where_they_differ_from_the_teacher(whole, cut, images):
    x, labels = images
    wrong = (labels + 1) % 10
    networks = [cut, copy.deepcopy(cut)]
    for network, given in zip(networks, (None, wrong), strict=True):
        distill(whole, network, x, given, steps=10, lr=2e-3)
    without, taught = (tally(network, x, wrong).loss for network in networks)
    assert taught < without


def test_the_same_seed_gives_the_same_weights(whole, cut, images):
    first, second, other = cut, copy.deepcopy(cut), copy.deepcopy(cut)
    torch.manual_seed(1)
    one = distill(whole, first, images[0], steps=4, seed=7)
    torch.manual_seed(2)
    two = distill(whole, second, images[0], steps=4, seed=7)
    distill(whole, other, images[0], steps=4, seed=8)
    assert one.loss_after == two.loss_after
    weights = [torch.cat([p.flatten() for p in n.parameters()]) for n in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_what_only_gets_worse_stays(whole, cut, images):
    """Even where training ends in numbers that are none."""
    x, _ = images
    for lr in (1.0, 1e30):
        before = cut(x)
        done = distill(whole, cut, x, steps=5, lr=lr)
        assert done.loss_after == done.loss_before
        assert torch.equal(cut(x), before)


def test_a_network_without_a_cut_stays(whole, images):
    x, _ = images
    same = copy.deepcopy(whole)
    done = distill(whole, same, x, steps=3)
    assert (done.loss_before, done.loss_after) == (0.0, 0.0)
    torch.testing.assert_close(same(x), whole(x), rtol=0, atol=1e-6)


def test_only_weights_change(whole, cut, images):
    x, _ = images
    cut.fc1.requires_grad_(True)
    of_whole = copy.deepcopy(whole.state_dict())
    buffers = {name: buffer.clone() for name, buffer in cut.named_buffers()}
    done = distill(whole, cut, x, steps=4)
    assert done.loss_after < done.loss_before
    assert [n for n, p in cut.named_parameters() if p.requires_grad] == ["fc1.weight", "fc1.bias"]
    assert all(p.grad is None for p in cut.parameters())
    assert not any(part.training for part in (*cut.modules(), *whole.modules()))
    assert not any(part._forward_hooks for part in (*cut.modules(), *whole.modules()))
    assert all(torch.equal(value, of_whole[name]) for name, value in whole.state_dict().items())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in cut.named_buffers())
    assert torch.equal(x, digits("calibration", 80)[0])


def test_the_caller_hears_how_it_goes(whole, cut, images):
    heard = []
    done = distill(whole, cut, images[0], steps=30, progress=lambda *what: heard.append(what))
    steps, totals, losses = zip(*heard, strict=True)
    assert (steps[0], steps[-1], set(totals)) == (0, 30, {30})
    assert sorted(set(steps)) == list(steps)
    assert (losses[0], losses[-1]) == (done.loss_before, done.loss_after)


def test_too_few_images_are_refused(whole, cut, images):
    with pytest.raises(ValueError, match=r"19 images are too few to distill with.*give 20 or more"):
        distill(whole, cut, images[0][:19], steps=5)


@pytest.mark.parametrize("name", sorted(NETWORKS.keys() - {"digits", "resnet18", "Gated"}))
def test_networks_of_all_kinds_can_be_trained(name):
    torch.manual_seed(0)
    whole = randomise(NETWORKS[name]())
    cut = copy.deepcopy(whole)
    with torch.no_grad():
        for parameter in cut.parameters():
            parameter.mul_(0.9)
    done = distill(whole, cut, torch.randn(20, 3, 8, 8), steps=8, batch=8)
    assert math.isfinite(done.loss_before)
    assert done.loss_after < done.loss_before


class NoGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 8 * 8, 5)

    @torch.no_grad()
    def forward(self, x):
        return self.linear(x.flatten(1))


@pytest.mark.parametrize("network", [NETWORKS["Gated"], NoGradients])
def test_a_network_without_gradients_is_refused_as_it_is(network):
    whole = network().eval()
    cut = copy.deepcopy(whole).requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"the network cannot be trained: .*(in-?place|no derivatives)"
    ):
        distill(whole, cut, torch.randn(20, 3, 8, 8), steps=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters()))
    assert not any(parameter.requires_grad for parameter in cut.parameters())


# ---- what is compared ----------------------------------------------------------------------------


def blocks(whole, removed, size=8, channels=3):
    image = torch.zeros(1, channels, size, size)
    return find_blocks(whole.eval(), without(whole.eval(), image, removed), image)


def test_blocks_of_residual_networks_keep_their_shape():
    names = blocks(resnet20(), {"layer2.1.conv1": [0], "layer3.0.conv1": [1]}, size=32)
    assert names == ["bn1", *(f"layer{i}.{j}" for i in (1, 2, 3) for j in (0, 1, 2))]


def test_a_layer_is_compared_where_no_channel_is_cut():
    names = blocks(NETWORKS["Vgg"](), {"features.3": [0]})
    assert names == ["features.1", "features.8", "classifier.1"]


def test_the_inside_of_a_wrapped_network_is_looked_at():
    class Wrapped(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(2 * x - 1)

    assert blocks(Wrapped(resnet20()), {"network.layer1.0.conv1": [0]}, size=32)[:2] == [
        "network.bn1",
        "network.layer1.0",
    ]


# ---- images moved, mirrored and blended ----------------------------------------------------------


def test_images_are_shifted_by_an_eighth_at_most_and_mirrored():
    x = torch.arange(16 * 24.0).reshape(1, 1, 16, 24).repeat(400, 1, 1, 1)
    random = torch.Generator().manual_seed(0)
    kept = move(x, random, mirror=False)
    middle = kept[:, 0, 8, 12]
    shifts = {(int(m) // 24 - 8, int(m) % 24 - 12) for m in middle}
    assert shifts == {(down, right) for down in range(-2, 3) for right in range(-3, 4)}
    mirrored = move(x, random, mirror=True)
    backwards = mirrored[:, 0, 8, 12] > mirrored[:, 0, 8, 13]
    assert 150 < int(backwards.sum()) < 250


def test_views_of_images_come_behind_the_images():
    images = torch.randn(5, 3, 16, 16)
    seen = views(images, 3, seed=0, mirror=True)
    assert seen.shape == (15, 3, 16, 16)
    assert torch.equal(seen[:5], images)
    assert not any(torch.equal(view, image) for view in seen[5:] for image in images)
    assert torch.equal(seen, views(images, 3, seed=0, mirror=True))
    assert not torch.equal(seen, views(images, 3, seed=1, mirror=True))
    assert torch.equal(views(images, 1, seed=0, mirror=True), images)


def test_images_are_mirrored_where_the_network_says_the_same_of_them():
    class Half(nn.Module):
        """Which half of an image is brighter."""

        def __init__(self, across):
            super().__init__()
            self.across = across

        def forward(self, x):
            return x.mean((1, self.across)).unfold(1, 4, 4).mean(2)  # (n, 2)

    images = torch.randn(300, 3, 8, 8)
    assert look_alike(Half(3), images)  # the upper half stays the upper one
    assert not look_alike(Half(2), images)


def test_blends_have_blended_targets():
    n = 200
    x = torch.eye(n)[:, :, None, None].expand(n, n, 6, 10)  # image i is 1 in channel i
    blended, targets = blend(x, torch.eye(n), torch.Generator().manual_seed(0))
    torch.testing.assert_close(blended.mean((2, 3)), targets)
    own, of_before = targets.diagonal(), targets.roll(1, 1).diagonal()
    torch.testing.assert_close(own + of_before, torch.ones(n))
    assert 0.45 < own.min() < 0.6  # half, up to whole pixels
    assert 0.7 < own.mean() < 0.85


def test_blends_are_faint_all_over_or_a_rectangle():
    n = 200
    x = torch.arange(n)[:, None, None, None].expand(n, 1, 12, 8) % 2.0  # of the other image: 1 or 0
    blended, _ = blend(x, None, torch.Generator().manual_seed(0))
    other = (blended - x).abs()[:, 0]  # (n, 12, 8)
    pasted = (other * (1 - other) == 0).all(2).all(1)
    assert 70 < int(pasted.sum()) < 130
    assert (other[~pasted] == other[~pasted][:, :1, :1]).all()
    for mask in other[pasted]:
        assert torch.equal(mask, mask.amax(1)[:, None] * mask.amax(0)[None, :])
