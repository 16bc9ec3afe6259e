"""A cut network refitted, beside what can be said of it beforehand and a plain fit."""

import copy

import numpy as np
import pytest
import torch
from cases import DATA, case
from mechanisms_of_layers import Sequences, Transposed, Volumes
from networks import NETWORKS
from plain import Plain, groups_by_name, images, lively, without
from slow_fit import fitted, penalty, rows_of
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.config import Images, Transform
from shapray.inputs.images import open_images
from shapray.network.silence import silenced
from shapray.network.surgery import prune_model
from shapray.pruning.repair import least_squares as module
from shapray.pruning.repair.least_squares import Refitted, least_squares

TRACEABLE = sorted(NETWORKS.keys() - {"resnet18", "Statement"})


def refitted(model: nn.Module, removed, x: Tensor, **settings) -> Refitted:
    groups = [group for group in groups_by_name(model, x[:1]).values() if group.reason is None]
    return least_squares(model, model, groups, removed, x, **settings)


def distance(found: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Of the outputs, relative."""
    with torch.inference_mode():
        expected, outputs = model(x.clone()), found(x.clone())
    return float((outputs - expected).norm() / expected.norm())


def bare(model: nn.Module, removed, x: Tensor) -> nn.Module:
    return without(model, x[:1], removed)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The network, calibration images and others."""
    found = [
        open_images(
            Images(
                source="parquet",
                path=str(DATA / "digits.parquet"),
                where={"split": split},
                limit=200,
            ),
            Transform(mode="L"),
            "images",
        )
        for split in ("calibration", "evaluation")
    ]
    return case("digits").model, *(images.load(0, len(images)) for images in found)


# ---- what it has to do -----------------------------------------------------------------------


@pytest.mark.parametrize("name", TRACEABLE)
def test_a_network_that_loses_nothing_stays_as_it_is(name):
    c = case(name)
    found = least_squares(c.model, c.model, c.groups, {}, c.images)
    assert found.layers == ()
    assert distance(found.network, c.model, c.images) == 0
    # removed units that nothing reads leave everything behind them to be fitted to what it was
    dead = copy.deepcopy(c.model)
    # a norm over channels would have counted it
    group = next(group for group in c.groups if not group.statistics)
    for consumer in group.consumers:
        layer = dead.get_submodule(consumer.module)
        layer.weight.data[:, torch.tensor(consumer.unit_of_channel) == 1] = 0
    found = least_squares(dead, dead, c.groups, {group.name: [1]}, c.images)
    assert found.layers
    assert distance(found.network, dead, c.images) < 1e-4


@pytest.mark.parametrize("name", TRACEABLE)
def test_what_is_fitted_silenced_is_what_is_cut(name):
    c = case(name)
    removed = {group.name: [0, group.n_units - 1] for group in c.groups if group.n_units > 2}
    before = copy.deepcopy(c.model.state_dict())
    found = least_squares(c.model, c.model, c.groups, removed, c.images)
    assert found.left_out == {}
    cut = prune_model(found.network, c.groups, removed)
    assert distance(cut, found.network, c.images) < 1e-4
    assert (
        distance(cut, c.model, c.images)
        <= distance(silenced(c.model, c.groups, removed), c.model, c.images) + 1e-6
    )
    assert all(torch.equal(value, before[key]) for key, value in c.model.state_dict().items())


def test_units_that_others_can_stand_in_for_are_made_good_exactly():
    class Spare(nn.Module):
        """Channels 3 to 5 of the second layer's input are sums of channels 0 to 2."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(4)
            self.second, self.head = nn.Conv2d(6, 4, 3, bias=False), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.norm(self.second(self.first(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = lively(Spare()), images(64)
    mix = torch.randn(3, 3)
    model.first.weight.data[3:] = torch.einsum("ij,jchw->ichw", mix, model.first.weight.data[:3])
    model.first.bias.data[3:] = mix @ model.first.bias.data[:3]
    removed = {"first": [3, 4, 5]}
    found = refitted(model, removed, x)
    cut = without(found.network, x[:1], removed)
    assert distance(bare(model, removed, x), model, x) > 0.1
    assert distance(cut, model, x) < 2e-3  # the ridge's share
    assert distance(cut, model, images(80)[64:]) < 2e-3  # on others too


def test_with_repair_the_digits_lose_less_at_every_size(digits):
    model, calibration, others = digits
    for share in (0.25, 0.5, 0.75):
        removed = {
            group.name: list(range(int(share * group.n_units))) for group in case("digits").groups
        }
        found = refitted(model, removed, calibration)
        assert found.layers == ("conv2", "conv3", "fc1", "fc2")
        cut = without(found.network, calibration[:1], removed)
        assert distance(cut, model, others) < 0.7 * distance(
            bare(model, removed, others), model, others
        )


def test_later_layers_make_good_for_earlier_ones(digits):
    model, calibration, others = digits
    removed = {"conv1": list(range(24))}
    all_layers = refitted(model, removed, calibration).network
    one = copy.deepcopy(model)
    one.conv2.weight.data, one.bn2 = all_layers.conv2.weight.data, all_layers.bn2
    assert distance(all_layers, model, others) < 0.95 * distance(one, model, others)


def test_a_layer_is_what_a_plain_fit_makes_of_it():
    """Two layers behind the cut: the second reads what the first has become."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3, stride=2)
            self.c = nn.Linear(4 * 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))).flatten(1))

    model, x = lively(Chain()), images(20)
    found = refitted(model, {"a": [1, 4]}, x).network
    with torch.inference_mode():
        read, wanted = torch.tanh(model.a(x)), model.b(torch.tanh(model.a(x)))
        stay = torch.tensor([True, False, True, True, False])
        weight, bias = fitted(model.b, read, wanted, channels=stay)
        assert torch.allclose(found.b.weight.double(), weight, atol=1e-5)
        assert torch.allclose(found.b.bias.double(), bias, atol=1e-5)
        weight, bias = fitted(model.c, torch.tanh(found.b(read)).flatten(1), model(x))
        assert torch.allclose(found.c.weight.double(), weight, atol=1e-5)
        assert torch.allclose(found.c.bias.double(), bias, atol=1e-5)


def test_a_residual_sum_is_the_target_and_not_the_layers_own_output():
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
            self.b, self.c, self.d = nn.Conv2d(5, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.stem(x))
            x = x + self.b(torch.tanh(self.a(x)))
            x = x + self.d(torch.tanh(self.c(x)))
            return self.head(torch.tanh(x).mean((2, 3)))

    model, x = lively(Blocks()), images(20)
    found = refitted(model, {"a": [0, 2]}, x).network

    def sums(network: nn.Module) -> tuple[Tensor, Tensor]:
        stem = torch.tanh(network.stem(x))
        first = stem + network.b(torch.tanh(network.a(stem)))
        return first, first + network.d(torch.tanh(network.c(first)))

    with torch.inference_mode():
        first, _ = sums(found)
        _, wanted = sums(model)
        inner = torch.tanh(found.c(first))
        weight, bias = fitted(model.d, inner, wanted - first)
        plain = F.conv2d(inner, weight.float(), bias.float())
        assert (found.d(inner) - plain).abs().max() < 1e-4 * plain.abs().max()
        error, unaware = ((first + out - wanted).norm() for out in (found.d(inner), model.d(inner)))
        assert error < 0.9 * unaware


def test_below_zero_a_rectified_target_is_met_by_anything_below_zero():
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.b(torch.tanh(self.a(x)))).mean((2, 3)))

    model, x = lively(Rectified()), images(40)
    model.b.bias.data -= 0.3  # mostly below zero
    found = refitted(model, {"a": [0, 1, 2]}, x).network
    stay = torch.arange(6) > 2
    with torch.inference_mode():
        read, wanted = torch.tanh(model.a(x)), model.b(torch.tanh(model.a(x)))
        strength = penalty(rows_of(nn.Conv2d(3, 1, 3), read[:, stay])[0])

        def objective(weight: Tensor, bias: Tensor) -> float:
            out = F.conv2d(read, weight, bias)
            errors = torch.where(wanted > 0, out - wanted, out.clamp(min=0)).square().sum()
            return float(errors + strength * (weight - model.b.weight)[:, stay].square().sum())

        plain = [part.float() for part in fitted(model.b, read, wanted, channels=stay)]
        assert objective(found.b.weight, found.b.bias) < 0.95 * objective(*plain)


# ---- what it leaves --------------------------------------------------------------------------


def test_in_train_mode_it_does_nearly_the_same(digits):
    model, calibration, _ = digits
    removed = {"conv1": list(range(12)), "conv2": list(range(12))}
    network = without(refitted(model, removed, calibration).network, calibration[:1], removed)
    with torch.no_grad():
        still, training = network(calibration), copy.deepcopy(network).train()(calibration)
    assert (still - training).norm() < 0.05 * still.norm()
    assert (still.argmax(1) == training.argmax(1)).float().mean() > 0.98


@pytest.mark.parametrize("affine", [True, False])
def test_a_layer_without_bias_stays_without(affine):
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 5, 3, bias=False)
            self.norm, self.c = nn.BatchNorm2d(5, affine=affine), nn.Conv2d(5, 4, 1, bias=False)
            self.head = nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.b(F.relu(self.a(x)))))
            return self.head(F.relu(self.c(x)).mean((2, 3)))

    model, x = lively(Bare()) if affine else Bare().eval(), images(30)
    removed = {"a": [0, 1], "b": [2], "c": [3]}
    found = refitted(model, removed, x)
    assert found.layers == ("b", "c", "head")
    assert found.network.state_dict().keys() == model.state_dict().keys()
    cut = without(found.network, x[:1], removed)
    assert distance(cut, found.network, x) < 1e-4
    assert distance(cut, model, x) < distance(bare(model, removed, x), model, x)


# ---- what cannot be fitted -------------------------------------------------------------------


def test_a_consumer_that_is_called_twice_is_left_out_and_the_rest_is_not():
    class Twice(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            y = F.relu(self.conv2(x)) + F.relu(self.conv2(x.flip(3)))
            return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(y, 2).flatten(1))))

    model, x = lively(Twice()), images(20)
    found = refitted(model, {"conv1": [0, 3]}, x)
    assert found.left_out == {"conv2": "it is called 2 times"}
    assert found.layers == ("fc1", "fc2")
    kept = model.conv2.weight.clone()
    kept[:, [0, 3]] = 0
    assert torch.equal(found.network.conv2.weight, kept)
    assert distance(found.network, model, x) < distance(bare(model, {"conv1": [0, 3]}, x), model, x)


@pytest.mark.parametrize("kind", [Transposed, Sequences, Volumes])
def test_convolutions_of_another_kind_are_cut_and_what_follows_is_refitted(kind):
    model, x = lively(kind()), images(20)
    first, second = kind.units
    found = refitted(model, {first: [0, 3]}, x)
    assert list(found.left_out) == [second]
    assert "what is refitted is Conv2d and Linear" in found.left_out[second]
    assert found.layers == ("last", "classifier")
    cut = bare(model, {first: [0, 3]}, x)
    assert distance(found.network, model, x) < distance(cut, model, x)


def test_layers_that_the_trace_does_not_show_are_named():
    class Wrapped(Plain):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.bn1(self.conv1(x)))
            x = F.adaptive_avg_pool2d(F.relu(self.conv2(input=x)), 2)
            return self.fc2(F.relu(self.fc1(x.flatten(1))))

    found = refitted(lively(Wrapped()), {"conv1": [0]}, images(20))
    assert found.left_out == {"conv2": "it is called by keyword"}
    assert found.layers == ("fc1", "fc2")


@pytest.mark.filterwarnings("ignore:torch.fx cannot trace")
def test_a_network_that_cannot_be_traced_is_cut_and_says_so():
    c = case("Statement")
    removed = {"conv1": [0, 1]}
    found = least_squares(c.model, c.model, c.groups, removed, c.images)
    assert found.layers == ()
    assert found.left_out == {"conv2": "torch.fx cannot trace the network"}
    assert distance(bare(found.network, removed, c.images), found.network, c.images) < 1e-4


# ---- the same numbers, and not too many of them ----------------------------------------------


def test_the_same_again_and_in_any_mode_of_autograd(digits):
    model, calibration, _ = digits
    removed = {"conv1": [1, 2, 3], "fc1": list(range(20))}
    found = [refitted(model, removed, calibration[:50]).network.state_dict() for _ in range(2)]
    with torch.inference_mode():
        found.append(refitted(model, removed, calibration[:50]).network.state_dict())
    for again in found[1:]:
        assert all(torch.equal(value, again[key]) for key, value in found[0].items())


def test_of_very_many_positions_some_are_taken_by_the_seed(digits, monkeypatch):
    model, calibration, others = digits
    removed = {"conv1": list(range(8))}
    taken = []
    solve = module.Regression.solve

    def watch(regression, *args):
        taken.append(regression.n)
        return solve(regression, *args)

    monkeypatch.setattr(module, "REFIT_ROWS", 2000)
    monkeypatch.setattr(module.Regression, "solve", watch)
    one, same, other = (
        refitted(model, removed, calibration, seed=seed).network for seed in (0, 0, 1)
    )
    assert max(taken) < 2200
    assert max(taken) > 1800
    assert torch.equal(one.conv2.weight, same.conv2.weight)
    assert not torch.equal(one.conv2.weight, other.conv2.weight)
    assert distance(one, model, others) < 0.7 * distance(
        bare(model, removed, others), model, others
    )


def test_every_layer_is_a_step(digits):
    model, calibration, _ = digits
    steps = []
    found = refitted(model, {"conv2": [0]}, calibration[:20], step=lambda: steps.append(1))
    assert len(steps) == len(found.layers) == 3
    assert np.isfinite(sum(p.sum().item() for p in found.network.parameters()))


class Shortcut(nn.Module):
    """A residual block whose shortcut is a layer, called before or after the others."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 12, 3, padding=1)
        self.beside = nn.Conv2d(16, 12, 1)
        self.head = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        if self.first:
            beside = self.beside(x)
            x = self.two(torch.relu(self.one(x)))
        else:
            x, beside = self.two(torch.relu(self.one(x))), self.beside(x)
        return self.head(torch.relu(x + beside).mean((2, 3)))


def test_a_shortcut_may_be_called_before_what_it_goes_around():
    """What lies in between reads what has been refitted, in either order."""
    torch.manual_seed(0)
    networks = [Shortcut(first).eval() for first in (True, False)]
    networks[0].load_state_dict(networks[1].state_dict())
    x, others = torch.randn(200, 3, 12, 12), torch.randn(200, 3, 12, 12)
    removed = {"stem": list(range(6)), "one": list(range(6))}
    found = [distance(refitted(n, removed, x).network, n, others) for n in networks]
    without = distance(bare(networks[1], removed, others), networks[1], others)
    assert max(found) < 0.5 * without
    assert 0.9 < found[0] / found[1] < 1.1
