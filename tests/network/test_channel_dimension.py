"""Where a layer's channels lie, whatever the shape of what it reads."""

import pytest
import torch
from plain import groups_by_name, lively
from timm.layers import LayerNorm, LayerNorm2d
from torch import nn
from torchvision.models import convnext

from shapray.network.channel_dimension import channel_dimension
from shapray.network.check import check_group

SQUARE = (1, 8, 8, 8)  # as many rows and columns as channels


@pytest.mark.parametrize("kind", [convnext.LayerNorm2d, LayerNorm2d, LayerNorm, nn.LayerNorm])
def test_of_a_layer_norm_the_shape_does_not_tell(kind):
    channel = 1 if kind.__name__ == "LayerNorm2d" else 3
    assert channel_dimension(kind(8), SQUARE) == channel
    oblong = [1, 7, 7, 7]
    oblong[channel] = 8
    assert channel_dimension(kind(8), oblong) == channel


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 1), convnext.LayerNorm2d(8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.stem(x)).relu().mean((2, 3)))


def test_channels_of_square_images_are_units():
    model = lively(Square())
    group = groups_by_name(model, torch.zeros(1, 3, 8, 8))["stem"]
    assert (group.n_units, group.reason) == (8, None)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert check_group(model, group, images, seed=0) is None
