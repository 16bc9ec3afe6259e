"""The picture is the image that the job was given."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from shapray.config import Transform
from shapray.explain.thumbnail import SIDE, thumbnail


def pixels_of(jpeg: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.format == "JPEG"
        return np.asarray(picture, dtype=float) / 255


def ramp(channels: int, height: int, width: int) -> torch.Tensor:
    """Smooth, within 0 and 1, another one in each channel."""
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    return torch.stack([(y + (c + 1) * x) / (c + 2) for c in range(channels)])


@pytest.mark.parametrize(
    "transform",
    [
        Transform(),
        Transform(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)),
        Transform(mean=(0.4, 0.5, 0.6)),
        Transform(std=(0.2, 0.3, 0.4)),
    ],
)
def test_mean_and_std_are_undone(transform):
    seen = image = ramp(3, 32, 32)
    if transform.mean:
        seen = seen - torch.tensor(transform.mean).view(3, 1, 1)
    if transform.std:
        seen = seen / torch.tensor(transform.std).view(3, 1, 1)
    found = pixels_of(thumbnail(seen, transform))
    assert np.abs(found - image.movedim(0, 2).numpy()).mean() < 0.03


def test_grey_stays_grey_and_other_channels_are_averaged():
    grey = Transform(mode="L")
    assert (
        np.abs(pixels_of(thumbnail(ramp(1, 8, 8), grey)) - ramp(1, 8, 8)[0].numpy()).mean() < 0.03
    )
    found = pixels_of(thumbnail(ramp(5, 8, 8), Transform()))
    assert np.abs(found - ramp(5, 8, 8).mean(0).numpy()).mean() < 0.03


@pytest.mark.parametrize(
    ("size", "shown"), [((8, 8), (8, 8)), ((224, 224), (48, 48)), ((100, 200), (24, 48))]
)
def test_it_is_small_and_never_larger_than_the_image(size, shown):
    jpeg = thumbnail(ramp(3, *size), Transform())
    assert pixels_of(jpeg).shape[:2] == shown
    assert max(shown) <= SIDE
    assert len(jpeg) < 1200


def test_pixels_scaled_by_the_user_fill_the_range_and_a_single_colour_is_no_error():
    found = pixels_of(thumbnail(4 * ramp(3, 16, 16) - 2, Transform()))
    assert np.abs(found - ramp(3, 16, 16).movedim(0, 2).numpy()).mean() < 0.03
    assert pixels_of(thumbnail(torch.full((3, 8, 8), 7.0), Transform())).max() == 0
