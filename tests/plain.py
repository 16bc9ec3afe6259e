"""A plain network, its images and its groups: the tests of what goes together vary it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.network.surgery import prune_model

EXAMPLE = torch.zeros(1, 3, 8, 8)


def lively(model: nn.Module) -> nn.Module:
    """BatchNorm as after training; a fresh one has no bias, which hides a misplaced mask."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.add_(1.0)
    return model.eval()


def images(n: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def groups_by_name(model: nn.Module, example: Tensor = EXAMPLE) -> dict[str, Group]:
    return {group.name: group for group in find_groups(model, example)}


def without(model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]) -> nn.Module:
    """The network cut: group -> units to remove."""
    return prune_model(model, find_groups(model, example), removed)


class Plain(nn.Module):
    """conv1 - bn1 - conv2 - flatten - fc1 - fc2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(5)
        self.conv2 = nn.Conv2d(5, 4, 3, padding=1)
        self.fc1 = nn.Linear(4 * 2 * 2, 6)
        self.fc2 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))
