"""BatchNorm statistics of a cut network, taken anew."""

import copy

import pytest
import torch
from networks import NETWORKS, Residual, randomise
from torch import nn
from torch.nn import functional as F

from shapray.pruning.repair import batchnorm as module
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.zoo import digits_cnn


@pytest.fixture(params=[2**30, 0], ids=["one pass", "a pass each"])
def _passes(request, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", request.param)


def digits():
    torch.manual_seed(0)
    return randomise(digits_cnn())


def images(n=23, channels=1):
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(1))


def normalised(x, norm):
    """By the statistics of `x` itself, in float64; and those."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=1)
    scaled = (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
    return scaled * norm.weight[:, None, None] + norm.bias[:, None, None], mean, variance


@pytest.mark.usefixtures("_passes")
def test_each_is_of_what_reaches_it_when_those_before_are_new():
    model = digits()
    right = copy.deepcopy(model).double()
    assert batchnorm(model, images(), batch=5) == 3

    x = images().double()
    for n in (1, 2, 3):
        norm = right.get_submodule(f"bn{n}")
        x, mean, variance = normalised(right.get_submodule(f"conv{n}")(x), norm)
        renewed = model.get_submodule(f"bn{n}")
        torch.testing.assert_close(renewed.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(renewed.running_var.double(), variance, rtol=1e-5, atol=1e-6)
        x = F.relu(x) if n == 1 else F.max_pool2d(F.relu(x), 2)


@pytest.mark.usefixtures("_passes")
@pytest.mark.parametrize("name", ["Vgg", "Residual", "Separable", "SqueezeExcite"])
def test_with_new_statistics_eval_mode_is_train_mode(name):
    """Of all images in one batch, up to n - 1 instead of n in the variance."""
    torch.manual_seed(0)
    model = randomise(NETWORKS[name]())
    x = images(64, 3)
    batchnorm(model, x, batch=10)
    in_batch = copy.deepcopy(model)
    for norm in in_batch.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.train()
    torch.testing.assert_close(model(x), in_batch(x), rtol=0.01, atol=0.01)


@pytest.mark.usefixtures("_passes")
def test_statistics_that_are_right_stay():
    torch.manual_seed(0)
    model = randomise(Residual())
    x = images(channels=3)
    batchnorm(model, x)
    before = model(x)
    assert batchnorm(model, x, batch=4) == 6
    torch.testing.assert_close(model(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("most", [2**30, 0])
def test_only_the_images_that_are_named_count(most):
    some, all_of_them, which = digits(), digits(), torch.tensor([4, 0, 7, 11, 2])
    batchnorm(some, images(), which, batch=2, most=most)
    batchnorm(all_of_them, images()[which])
    for name, value in all_of_them.state_dict().items():
        torch.testing.assert_close(some.state_dict()[name], value)


def test_weights_modes_and_images_stay():
    model, x = digits(), images()
    model.fc1.requires_grad_(True)
    before = {name: p.clone() for name, p in model.named_parameters()}
    batchnorm(model, x)
    assert not any(part.training for part in model.modules())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["fc1.weight", "fc1.bias"]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert torch.equal(x, images())
    assert model(x).requires_grad  # nothing is left behind that cannot be trained on


class Odd(nn.Module):
    """One BatchNorm of vectors, given by keyword; one without statistics; one called twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.twice = nn.BatchNorm2d(4)
        self.of_batch = nn.BatchNorm2d(4, track_running_stats=False)
        self.linear, self.flat = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x):
        x = self.twice(self.twice(self.conv(x)).relu())
        return self.flat(input=self.linear(self.of_batch(x).mean((2, 3))))


def test_only_those_with_statistics_of_their_own():
    torch.manual_seed(0)
    model = Odd().eval()
    read = []
    model.linear.register_forward_hook(lambda _, __, output: read.append(output))
    assert batchnorm(model, images()) == 1
    assert torch.equal(model.twice.running_mean, torch.zeros(4))
    torch.testing.assert_close(model.flat.running_mean, read[-1].mean(0))
    torch.testing.assert_close(model.flat.running_var, read[-1].var(0))
