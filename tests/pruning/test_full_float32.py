"""What a network is repaired and ranked by does not depend on how the user lets GPUs multiply."""

import re

import pytest
import torch
from plain import Plain, groups_by_name, images, lively
from torch.utils._python_dispatch import TorchDispatchMode

from shapray.engine.network_game import NetworkSplit
from shapray.engine.score import score_images
from shapray.engine.trace import fold
from shapray.pruning.criteria import criterion
from shapray.pruning.repair.batchnorm import batchnorm
from shapray.pruning.repair.curves import loss_curves
from shapray.pruning.repair.least_squares import least_squares
from shapray.shapley.estimators import Settings
from shapray.shapley.pilot import Price

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="older names of the settings"
)


def settings():
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


class Scored(Settings):
    value, seed = "neg_kl_divergence", 0


class Watch(TorchDispatchMode):
    """Notes how GPUs would multiply at every product."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if re.search("mm$|conv|matmul|linear$", operation.overloadpacket.__name__):
            self.found.add(settings())
        return operation(*args, **(kwargs or {}))


def score(model, groups, x):
    split = NetworkSplit(
        fold(model, x[:1]), groups[0], x[:1], precision="float32", device="cpu", memory=2**30
    )
    return lambda: score_images(split, x, None, list("abcdefgh"), Scored(), Price(8), range(8))


WORK = {  # prepared; what is called then is watched
    "least_squares": lambda model, groups, x: (
        lambda: least_squares(model, model, groups, {"conv1": [1]}, x)
    ),
    "batchnorm": lambda model, groups, x: lambda: batchnorm(model, x),
    "losses": lambda model, groups, x: (
        lambda: loss_curves(model, groups[0], {"own": range(groups[0].n_units)}, x, True)
    ),
    "obs": lambda model, groups, x: lambda: criterion("obs", model, groups, x, None),
    "scores": score,
}


@pytest.fixture
def fast():
    """The user lets GPUs round what they multiply."""
    before = settings()
    owners = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    for owner in owners:
        owner.fp32_precision = "tf32"
    yield
    for owner, precision in zip(owners, before, strict=True):
        owner.fp32_precision = precision


@pytest.mark.parametrize("work", WORK)
def test_float32_is_multiplied_in_full_and_the_setting_comes_back(fast, work):
    model, x = lively(Plain()), images(8)
    groups = [group for group in groups_by_name(model).values() if group.reason is None]
    prepared = WORK[work](model, groups, x)
    with Watch() as watch:
        prepared()
    assert settings() == ("tf32", "tf32")
    assert watch.found == {("ieee", "ieee")}
