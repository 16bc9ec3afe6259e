"""Pictures of kernels, and of which layers there are any."""

import io

import numpy as np
import torch
from cases import case
from PIL import Image
from plain import groups_by_name, lively
from torch import nn

from shapray.explain.kernels import kernels
from shapray.storage.explained import KERNELS


def pixels_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture, dtype=float)


def test_a_kernel_of_three_channels_is_in_colour_and_symmetric_about_grey():
    of = case("Residual")  # the stem is one of the layers that make the residual stream
    found = kernels(of.model, of.groups, of.example)
    assert found.schema.equals(KERNELS)
    rows = found.to_pylist()
    assert [(row["group"], row["unit"]) for row in rows] == [("stem", unit) for unit in range(6)]
    for row in rows:
        kernel = of.model.stem.weight[row["unit"]]  # (3, 3, 3)
        expected = 127.5 + 127.5 * kernel / kernel.abs().max()
        assert np.abs(pixels_of(row["picture"]) - expected.movedim(0, 2).numpy()).max() <= 0.51
        assert (row["height"], row["width"]) == (3, 3)


def test_a_kernel_of_one_channel_is_grey():
    of = case("digits")
    rows = kernels(of.model, of.groups, of.example).to_pylist()
    assert {row["group"] for row in rows} == {"conv1"}
    assert len(rows) == 32
    assert pixels_of(rows[0]["picture"]).shape == (3, 3)


class Stem(nn.Module):
    """A first convolution of its own number of channels, a second with as many as the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 3, 5), nn.Conv2d(3, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv1(self.norm(x)).relu()
        return self.head(self.conv2(x).relu().mean((2, 3)))


def test_only_what_reads_the_image_has_kernels_normalised_or_not():
    example = torch.zeros(1, 3, 12, 12)
    model = lively(Stem(3))
    nn.init.zeros_(model.conv1.weight[1])
    groups = list(groups_by_name(model, example).values())
    rows = kernels(model, [g for g in groups if g.reason is None], example).to_pylist()
    assert [(row["group"], row["unit"]) for row in rows] == [("conv1", unit) for unit in range(3)]
    assert np.ptp(pixels_of(rows[1]["picture"])) == 0  # nothing but zeros


def test_images_of_other_channels_have_none():
    example = torch.zeros(1, 5, 12, 12)
    model = lively(Stem(5))
    groups = [g for g in groups_by_name(model, example).values() if g.reason is None]
    assert groups
    assert len(kernels(model, groups, example)) == 0
