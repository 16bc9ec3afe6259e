"""Criteria by brute force: what each says of a unit, found in the plainest way."""

import copy

import numpy as np
import pytest
import torch
from cases import case
from mechanisms_of_layers import Transposed
from networks import NETWORKS
from plain import Plain, groups_by_name, images, lively, without
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.config import Score, prune
from shapray.network.consumers import mask_consumers
from shapray.network.group import Channels, Group
from shapray.pruning.criteria import CRITERIA, criterion
from shapray.pruning.criteria.gates import Gate, gated
from shapray.pruning.criteria.inputs import AsScored
from shapray.shapley.pilot import Price

WITH_LOSS = ["taylor", "taylor_signed", "obd", "jacobian", "leave_one_out"]
LABELS = torch.tensor([0, 2, 1])


class Stream(nn.Module):
    """Two convolutions are added up, and three layers read the sum, one behind another."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 5, 3, padding=1)
        self.back, self.bn2 = nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(x + self.bn2(self.back(F.relu(self.inner(x), inplace=True))))
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


def stream() -> tuple[nn.Module, Group]:
    model = lively(Stream())
    group = groups_by_name(model)["stem"]
    assert group.reason is None
    assert [c.module for c in group.consumers] == ["inner", "head"]
    return model, group


def losses(model: nn.Module, labels: Tensor = LABELS) -> Tensor:
    return F.cross_entropy(model(images()).double(), labels, reduction="none")


def gate_jacobian(model: nn.Module, gate: Gate, labels: Tensor = LABELS) -> Tensor:
    """(n_images, n_units): a gate for all images together, one image's loss after another."""

    def gated_losses(factor: Tensor) -> Tensor:
        with gated(model, [(gate, factor[None])]):
            return losses(model, labels)

    return torch.autograd.functional.jacobian(gated_losses, torch.ones(gate.n_units))


# --- from the weights, or from nothing ------------------------------------------------------------


def test_random_values_of_a_group_do_not_depend_on_the_others():
    model = lively(Plain())
    groups = groups_by_name(model)
    some = [groups["conv1"], groups["conv2"], groups["fc1"]]
    drawn = criterion("random", model, some, images(), None, seed=3)
    alone = criterion("random", model, some[2:], images(), None, seed=3)
    assert np.array_equal(drawn["fc1"], alone["fc1"])
    assert [len(values) for values in drawn.values()] == [5, 4, 6]
    assert len({value for values in drawn.values() for value in values}) == 15
    other = criterion("random", model, some, images(), None, seed=4)
    assert not np.intersect1d(drawn["conv1"], other["conv1"]).size


def test_norms_of_all_layers_that_are_added_up():
    model, group = stream()
    l1 = criterion("l1_norm", model, [group], images(), None)["stem"]
    l2 = criterion("l2_norm", model, [group], images(), None)["stem"]
    scale = criterion("batchnorm_scale", model, [group], images(), None)["stem"]
    for unit in range(4):
        rows = [model.stem.weight.data[unit], model.back.weight.data[unit]]
        assert l1[unit] == pytest.approx(sum(float(row.abs().sum()) for row in rows))
        assert l2[unit] == pytest.approx(sum(float(row.norm()) for row in rows))
        gammas = model.bn.weight.data[unit].abs() + model.bn2.weight.data[unit].abs()
        assert scale[unit] == pytest.approx(float(gammas))


def test_norms_count_a_root_that_reads_its_own_group():
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.stem = nn.Conv2d(4, 4, 1), nn.Conv2d(3, 4, 3)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            return self.head(F.relu(x + self.mix(x)).mean((2, 3)))

    model = lively(Looped())
    group = groups_by_name(model)["mix"]
    assert {consumer.module for consumer in group.consumers} == {"mix", "head"}
    found = criterion("l1_norm", model, [group], images(), None)["mix"]
    rows = [module.weight.data.abs().flatten(1).sum(1) for module in (model.mix, model.stem)]
    assert found == pytest.approx(sum(rows).numpy())


def test_norms_count_depthwise_convolutions_and_not_what_reads():
    model, groups = case("Separable").model, case("Separable").groups
    group = next(g for g in groups if g.name == "expand.0")
    found = criterion("l1_norm", model, [group], case("Separable").images, None)["expand.0"]
    expected = [
        weight.abs().flatten(1).sum(1) for weight in (model.expand[0].weight, model.depth[0].weight)
    ]
    assert found == pytest.approx(sum(expected).double().numpy())


def test_norms_of_a_transposed_convolution_are_of_what_it_puts_out():
    model = lively(Transposed())
    found = criterion("l1_norm", model, [groups_by_name(model)["up"]], images(), None)["up"]
    assert found == pytest.approx(model.up.weight.detach().abs().sum((0, 2, 3)).numpy())


def test_a_group_without_batchnorm_cannot_be_ranked_by_its_scale():
    model = lively(Plain())
    groups = groups_by_name(model)
    with pytest.raises(ValueError, match=r"batchnorm_scale, group conv2: .* its 4 units"):
        criterion("batchnorm_scale", model, [groups["conv1"], groups["conv2"]], images(), None)


# --- from what the consumers read -----------------------------------------------------------------


def test_share_of_what_is_not_zero_over_images_positions_and_consumers():
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 2, 1, bias=False), nn.Conv2d(2, 3, 1)
            self.head = nn.Linear(2 + 3, 2)
            self.first.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.first(x))
            return self.head(torch.cat([x, self.second(x)], 1).amax((2, 3)))

    model = Small().eval()
    pixels = torch.tensor([[[[1.0, 2.0, -1.0, 0.0]]], [[[1.0, 1.0, 1.0, 5.0]]]])
    group = groups_by_name(model, pixels[:1])["first"]
    # the convolution reads 6 and 1 of 8 positions, the linear layer 2 and 1 of 2 maxima
    expected = [(6 / 8 + 2 / 2) / 2, (1 / 8 + 1 / 2) / 2]
    for batch in (1, 64):
        found = criterion("apoz", model, [group], pixels, None, batch=batch)
        assert found["first"].tolist() == expected


def test_a_gate_between_none_and_whole_is_the_masked_network():
    model, group = stream()
    gate = Gate(group.n_units, readers=group.consumers)
    for unit in range(group.n_units):
        keep = torch.arange(group.n_units) != unit
        with torch.no_grad(), mask_consumers(model, group, keep):
            masked = model(images())
        with torch.no_grad(), gated(model, [(gate, keep[None].float())]):
            torch.testing.assert_close(model(images()), masked)


def test_taylor_is_the_slope_of_the_loss_along_the_gate():
    model, group = stream()
    model = model.double()
    gate, step = Gate(group.n_units, readers=group.consumers), 1e-5

    def loss_with(factor: Tensor) -> Tensor:
        with torch.no_grad(), gated(model, [(gate, factor[None])]):
            return F.cross_entropy(model(images().double()), LABELS, reduction="none")

    one, unit = torch.ones(4).double(), torch.eye(4).double()
    slopes = torch.stack(
        [(loss_with(one + step * u) - loss_with(one - step * u)) / (2 * step) for u in unit], 1
    ).numpy()  # (n_images, n_units)
    expected = {
        "taylor": np.abs(slopes).mean(0),
        "taylor_signed": -slopes.mean(0),
        "obd": (slopes**2 / 2 - slopes).mean(0),
    }
    for name, values in expected.items():
        found = criterion(name, model.float(), [group], images(), LABELS, batch=2)["stem"]
        assert found == pytest.approx(values, rel=1e-3, abs=1e-6), name


def test_taylor_is_activation_times_gradient_summed_over_positions_and_consumers():
    model, group = stream()
    read: dict[str, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # a copy of its own for each consumer: the gradient is along this consumer alone
        name = next(n for n, m in model.named_modules() if m is module)
        read[name] = args[0].clone()
        read[name].retain_grad()
        return (read[name],)

    handles = [getattr(model, name).register_forward_pre_hook(keep) for name in ("inner", "head")]
    losses(model).sum().backward()
    for handle in handles:
        handle.remove()
    inner, head = ((read[n] * read[n].grad).detach() for n in ("inner", "head"))
    slopes = inner.sum((2, 3)) + head.view(3, 4, 4).sum(2)
    found = criterion("taylor", model, [group], images(), LABELS)["stem"]
    assert found == pytest.approx(slopes.abs().mean(0).numpy(), rel=1e-4)


def test_jacobian_has_a_gate_for_every_layer_of_the_group():
    model, group = stream()
    units = tuple(range(4))
    names = ("stem", "bn", "back", "bn2")
    writers = [Gate(4, writers=(Channels(name, units),)) for name in names]
    readers = [Gate(4, readers=(consumer,)) for consumer in group.consumers]
    expected = sum(gate_jacobian(model, gate).square().mean(0) for gate in writers + readers)
    found = criterion("jacobian", model, [group], images(), LABELS, batch=2)["stem"]
    assert found == pytest.approx(expected.numpy(), rel=1e-4)


def test_jacobian_is_that_of_a_units_parameters():
    """w^T J^T J w, with every layer's weights, and J of the images' losses."""
    model, group = stream()
    expected = torch.zeros(4)
    for image in range(3):
        model.zero_grad()
        losses(model)[image].backward()
        slope = {name: (p * p.grad).detach() for name, p in model.named_parameters()}
        for layer in ("stem", "bn", "back", "bn2"):
            weight, bias = slope[f"{layer}.weight"], slope[f"{layer}.bias"]
            expected += (weight.flatten(1).sum(1) if weight.ndim > 1 else weight).add(bias) ** 2
        expected += slope["inner.weight"].sum((0, 2, 3)) ** 2
        expected += slope["head.weight"].view(3, 4, 4).sum((0, 2)) ** 2
    found = criterion("jacobian", model, [group], images(), LABELS)["stem"]
    assert found == pytest.approx((expected / 3).numpy(), rel=1e-4)


@pytest.mark.parametrize("name", ["Residual", "Vgg"])
def test_leave_one_out_is_the_loss_of_the_pruned_network(name):
    network = case(name)
    found = criterion(
        "leave_one_out", network.model, network.groups, network.images, network.labels, batch=2
    )

    def loss(model: nn.Module) -> float:
        with torch.inference_mode():
            return float(F.cross_entropy(model(network.images).double(), network.labels))

    whole = loss(network.model)
    for group in network.groups:
        for unit in (0, group.n_units - 2, group.n_units - 1):  # the first is never active
            pruned = without(network.model, network.example, {group.name: [unit]})
            assert found[group.name][unit] == pytest.approx(loss(pruned) - whole, abs=1e-5)


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_LOSS)
def test_without_labels_the_networks_own_answer_is_the_label(name):
    model, group = stream()
    own = model(images()).argmax(1)
    found = criterion(name, model, [group], images(), None)["stem"]
    assert np.array_equal(found, criterion(name, model, [group], images(), own)["stem"])
    other = criterion(name, model, [group], images(), (own + 1) % 3)["stem"]
    assert not np.allclose(found, other)


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_ranks_the_digits_network_and_leaves_it_alone(name):
    network = case("digits")
    groups = network.groups
    if name == "batchnorm_scale":
        groups = [group for group in groups if group.kind == "conv"]
    model = copy.deepcopy(network.model)
    model.conv1.weight.requires_grad_(True)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    pixels = network.images.clone()
    every = range(len(pixels))
    prices = {group.name: Price(8) for group in groups}
    asked = AsScored(Score(estimator="permutation"), prices, [str(i) for i in every], every)
    found = criterion(name, model, groups, pixels, network.labels, as_scored=asked)
    assert list(found) == [group.name for group in groups]
    for group in groups:
        values = found[group.name]
        assert (values.shape, values.dtype) == ((group.n_units,), np.float64)
        assert np.isfinite(values).all()
        assert len(set(values)) > 1
    again = criterion(name, model, groups, pixels, network.labels, as_scored=asked)
    assert all(np.array_equal(found[group], again[group]) for group in found)
    parts = criterion(name, model, groups, pixels, network.labels, batch=4, as_scored=asked)
    assert all(np.allclose(found[g], parts[g], rtol=1e-4, atol=1e-6) for g in found)

    assert torch.equal(pixels, network.images)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [key for key, p in model.named_parameters() if p.requires_grad] == ["conv1.weight"]
    assert not any(module.training for module in model.modules())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet18"])
def test_derivatives_agree_with_the_measured_loss_whatever_the_network_does(name):
    """Among them are networks that overwrite what a derivative needs."""
    network, step = case(name), 1e-2
    model, groups = network.model, network.groups
    found = criterion("taylor_signed", model, groups, network.images, network.labels)

    def loss(gate: Gate, factor: Tensor) -> float:
        with torch.inference_mode(), gated(model, [(gate, factor)]):
            logits = model(network.images.clone()).double()
        return float(F.cross_entropy(logits, network.labels))

    for group in groups:
        gate = Gate(group.n_units, readers=group.consumers)
        for unit in range(min(group.n_units, 4)):
            nudge = step * F.one_hot(torch.tensor([unit]), group.n_units)
            slope = (loss(gate, 1 + nudge) - loss(gate, 1 - nudge)) / (2 * step)
            assert found[group.name][unit] == pytest.approx(-slope, abs=2e-3, rel=5e-2)


def test_what_a_user_can_mend_is_said():
    model = lively(Plain())
    groups = groups_by_name(model)
    with pytest.raises(ValueError, match=r"no criterion 'l3_norm'; there are random, l1_norm"):
        criterion("l3_norm", model, [groups["conv1"]], images(), None)
    assert criterion("taylor", model, [], images(), None) == {}

    broken = copy.deepcopy(model)
    broken.conv1.weight.data[3] = torch.nan
    with pytest.raises(ValueError, match=r"l1_norm, group conv1: 1 of 5 .* units 3"):
        criterion("l1_norm", broken, [groups["conv1"]], images(), None)

    with pytest.raises(ValueError, match=r"score with estimator='permutation'"):
        criterion("shapley_sampled", model, [groups["conv1"]], images(), LABELS)

    class Frozen(Plain):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    with pytest.raises(ValueError, match=r"no derivatives.*torch\.no_grad"):
        criterion("taylor", lively(Frozen()), [groups["conv1"]], images(), LABELS)


def test_a_job_can_name_every_criterion_there_is():
    assert set(prune.CRITERIA) == set(CRITERIA)
