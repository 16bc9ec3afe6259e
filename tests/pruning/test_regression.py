"""The ridge regression of a layer, beside one whose rows are spelled out one by one."""

import sys

import pytest
import torch
from slow_fit import fitted, outputs_of, rows_of
from torch import Tensor, nn

from shapray.pruning.repair import regression
from shapray.pruning.repair.regression import Fit, Regression

LAYERS = {
    "plain": lambda: nn.Conv2d(3, 4, 3),
    "no bias": lambda: nn.Conv2d(3, 4, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": lambda: nn.Conv2d(3, 4, 3, dilation=(1, 2), padding=2),
    "same": lambda: nn.Conv2d(3, 4, (4, 3), padding="same"),
    "reflect": lambda: nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"),
    "circular": lambda: nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "linear": lambda: nn.Linear(6, 4),
    "linear of sequences": lambda: nn.Linear(6, 4),
    "linear of maps": lambda: nn.Linear(6, 4, bias=False),
}
SHAPES = {"linear": (40, 6), "linear of sequences": (8, 5, 6), "linear of maps": (4, 3, 4, 6)}
BIASED = [True, False]


def problem(name: str) -> tuple[nn.Conv2d | nn.Linear, Tensor, Tensor]:
    """A layer, inputs with a mean, and targets that it does not meet."""
    torch.manual_seed(0)
    layer = LAYERS[name]().requires_grad_(False)
    n_channels = layer.in_channels if isinstance(layer, nn.Conv2d) else None
    inputs = torch.randn(SHAPES.get(name, (3, n_channels, 7, 6))) + 0.5
    outputs = layer(inputs)
    return layer, inputs, outputs + 0.3 * torch.randn(outputs.shape) + 1.0


def fit(
    layer: nn.Conv2d | nn.Linear,
    inputs: Tensor,
    targets: Tensor,
    with_bias: bool,
    n_rows: int = sys.maxsize,
    channels: Tensor | None = None,
) -> Fit:
    """By their sums where many rows are announced, by the rows themselves where few are; in two
    batches."""
    bias = layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
    found = Regression(layer, bias, with_bias, n_rows, channels)
    found.add(lambda: [(inputs[:1], targets[:1]), (inputs[1:], targets[1:])])
    return found.solve()


def assert_same(found: Fit, weight: Tensor, bias: Tensor, tolerance: float) -> None:
    for mine, other in ((found.weight, weight), (found.bias, bias)):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() <= tolerance * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("with_bias", BIASED)
@pytest.mark.parametrize("n_rows", [0, sys.maxsize], ids=["rows", "sums"])
@pytest.mark.parametrize("name", LAYERS)
def test_it_is_the_direct_solution(name, n_rows, with_bias):
    layer, inputs, targets = problem(name)
    given = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    fixed = None if with_bias else given.double().numpy()
    weight, bias = fitted(layer, inputs, targets, fixed)
    assert_same(fit(layer, inputs, targets, with_bias, n_rows), weight, bias, 1e-5)


@pytest.mark.parametrize("with_bias", BIASED)
@pytest.mark.parametrize("name", ["plain", "strided", "grouped", "linear", "linear of maps"])
def test_channels_that_may_not_be_read_are_as_good_as_not_there(name, with_bias):
    layer, inputs, targets = problem(name)
    given = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    n_groups = getattr(layer, "groups", 1)
    channels = torch.arange(n_groups * layer.weight.shape[1]) % 3 != 1  # one of each group
    weight, bias = fitted(
        layer, inputs, targets, None if with_bias else given.double().numpy(), channels
    )
    for n_rows in (0, sys.maxsize):
        found = fit(layer, inputs, targets, with_bias, n_rows, channels)
        assert_same(found, weight, bias, 1e-5)
        gone = ~channels.view(n_groups, -1).repeat_interleave(len(weight) // n_groups, 0)
        assert (found.weight[gone] == 0).all()
        whole = Regression(layer, given, with_bias, n_rows)
        whole.add(lambda: [(inputs, targets)])
        assert_same(whole.solve(channels), weight, bias, 1e-5)


@pytest.mark.parametrize("name", LAYERS)
def test_mean_and_variance_are_those_of_the_new_outputs(name):
    layer, inputs, targets = problem(name)
    for n_rows in (0, sys.maxsize):
        for with_bias in BIASED:
            found = fit(layer, inputs, targets, with_bias, n_rows)
            layer.weight.copy_(found.weight)
            outputs = (
                torch.from_numpy(outputs_of(layer, layer(inputs))).movedim(0, 1).flatten(1)
            )  # (n, out)
            outputs = outputs - (0 if layer.bias is None else layer.bias)
            assert torch.allclose(found.mean, outputs.mean(0), atol=1e-5)
            assert torch.allclose(found.variance, outputs.var(0, correction=0), rtol=1e-4)
            layer, inputs, targets = problem(name)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("name", LAYERS)
def test_targets_that_are_free_below_zero(name, share):
    """Beside a fit to targets that are spelled out."""
    layer, inputs, wanted = problem(name)
    given = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    rest = torch.randn(wanted.shape)
    for n_rows in (0, sys.maxsize):
        free, spelled = (Regression(layer, given, True, n_rows) for _ in range(2))
        free.add(lambda: [(inputs, wanted - rest)], share, seed=3)
        first = free.solve()
        free.free_below_zero(first, lambda: [(inputs, wanted, rest)], share, seed=3)
        along = 1 if isinstance(layer, nn.Conv2d) else -1
        bias = first.bias.view([-1 if d == along % wanted.ndim else 1 for d in range(wanted.ndim)])
        kept = layer.weight.clone()
        layer.weight.copy_(first.weight)
        found = layer(inputs) - (0 if layer.bias is None else given.view(bias.shape)) + bias + rest
        layer.weight.copy_(kept)
        targets = torch.where(wanted > 0, wanted, found.clamp(max=0)) - rest
        spelled.add(lambda targets=targets: [(inputs, targets)], share, seed=3)
        second, expected = free.solve(), spelled.solve()
        assert_same(second, expected.weight, expected.bias, 1e-5)
        assert not torch.equal(second.weight, first.weight)


def test_a_share_of_the_rows_is_drawn_by_the_seed():
    layer, inputs, targets = problem("plain")
    n_rows = rows_of(layer, inputs).shape[1]
    taken = []
    for seed in (0, 0, 1):
        some = Regression(layer, layer.bias, True, sys.maxsize)
        some.add(lambda: [(inputs, targets)], 0.5, seed)
        taken.append((some.n, some.solve().weight))
    assert 0.3 * n_rows < taken[0][0] < 0.7 * n_rows
    assert torch.equal(taken[0][1], taken[1][1])
    assert not torch.equal(taken[0][1], taken[2][1])


@pytest.mark.parametrize("name", LAYERS)
def test_a_share_of_the_rows_has_their_own_targets(name):
    """Some of them are enough to find the layer that has made the targets."""
    layer, few, _ = problem(name)
    inputs = torch.randn(160, *few.shape[1:]) + 0.5
    torch.manual_seed(1)
    other = LAYERS[name]().requires_grad_(False)
    bias = torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
    some = Regression(layer, bias, layer.bias is not None, sys.maxsize)
    some.add(lambda: zip(inputs.split(70), other(inputs).split(70)), 0.6, seed=0)
    expected = torch.zeros(len(layer.weight)) if other.bias is None else other.bias
    assert_same(some.solve(ridge=1e-9), other.weight, expected, 1e-3)


def later(layer: nn.Conv2d, **settings: object) -> nn.Conv2d:
    """A layer that was made with other settings."""
    for name, value in settings.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize("share", [1.0, 0.6])
@pytest.mark.parametrize(
    "settings",
    [
        {"padding": (0, 0)},
        {"padding": 2, "dilation": 2},
        {"stride": 2},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
    ],
)
def test_settings_that_were_changed_later_count(settings, share):
    layer, other = (
        later(nn.Conv2d(3, 4, 3, padding=1).requires_grad_(False), **settings) for _ in range(2)
    )
    inputs = torch.randn(160, 3, 9, 8)
    some = Regression(layer, layer.bias, True, sys.maxsize)
    some.add(lambda: zip(inputs.split(70), other(inputs).split(70)), share, seed=0)
    assert_same(some.solve(ridge=1e-9), other.weight, other.bias, 1e-3)


def test_patches_are_spelled_out_in_parts(monkeypatch):
    layer, inputs, targets = problem("grouped")
    expected = fit(layer, inputs, targets, True)
    sizes = []
    spelled = nn.functional.unfold

    def watch(x: Tensor, *args: object) -> Tensor:
        sizes.append(spelled(x, *args).numel())
        return spelled(x, *args)

    monkeypatch.setattr(nn.functional, "unfold", watch)
    whole = fit(layer, inputs, targets, True)
    assert len(sizes) == 2
    monkeypatch.setattr(regression, "UNFOLDED_NUMBERS", max(sizes) // 2)
    found = fit(layer, inputs, targets, True)
    assert_same(found, expected.weight, expected.bias, 1e-5)
    assert_same(whole, expected.weight, expected.bias, 0)
    assert len(sizes) == 2 + 3
    assert max(sizes[2:]) <= regression.UNFOLDED_NUMBERS


@pytest.mark.parametrize("n_rows", [0, sys.maxsize])
def test_features_that_are_always_zero_leave_the_weights_as_they_are(n_rows):
    layer, inputs, targets = problem("plain")
    found = fit(layer, torch.zeros_like(inputs), targets, True, n_rows)
    assert torch.equal(found.weight, layer.weight)
    assert torch.allclose(found.bias, targets.mean((0, 2, 3)), atol=1e-6)
