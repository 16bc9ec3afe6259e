"""Multiply-adds, beside PyTorch's own counter."""

import subprocess
import sys

import pytest
import torch
import torchvision
from networks import NETWORKS
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from shapray.network.multiply_adds import MultiplyAdds


def counted(model: nn.Module, x: torch.Tensor) -> int:
    with MultiplyAdds() as found:
        model(x.clone())
    return found.total


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("name", ["Vgg", "Separable", "SqueezeExcite", "swin_t"])
def test_they_are_those_of_pytorchs_counter(name, mode):
    build = NETWORKS.get(name) or getattr(torchvision.models, name)
    side = 32 if name == "swin_t" else 8
    model, x = build().eval(), torch.randn(2, 3, side, side)
    with torch.no_grad(), FlopCounterMode(display=False) as theirs:
        model(x.clone())
    with mode():
        assert counted(model, x) == theirs.get_total_flops() // 2 > 0


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 5))
    assert counted(model, torch.zeros(1, 4, 3, 3)) == 6 * 2 * 9 + 6 * 5


def test_of_a_transposed_convolution_by_hand():
    assert counted(nn.ConvTranspose2d(4, 6, 2, stride=2), torch.zeros(1, 4, 3, 3)) == 9 * 4 * 6 * 4


@pytest.mark.slow
def test_the_compiler_is_not_imported():
    program = (
        "import sys, torch; from shapray.pruning.evaluate import count_macs; "
        "from shapray.zoo import digits_cnn; "
        "assert count_macs(digits_cnn().eval(), torch.zeros(1, 1, 8, 8))[1] == 686720; "
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)
