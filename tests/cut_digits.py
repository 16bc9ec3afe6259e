"""The digits' network, as after training, and a cut of it that is made by hand."""

import torch
from torch import nn

from shapray.zoo import digits_cnn

EXAMPLE = torch.zeros(1, 1, 8, 8)
REMOVED = {"conv1": [3, 0, 31], "conv3": [1, 2, 15], "fc1": list(range(0, 64, 2))}
SIZES = {"conv1": 32, "conv3": 16, "fc1": 64}


def digits() -> nn.Module:
    torch.manual_seed(0)
    model = digits_cnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_()
            module.running_mean.normal_()
    return model.eval()


def images() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
