"""The small pictures of cards."""

import io
from base64 import b64decode

import numpy as np
from PIL import Image

from shapray.report.sprites import sprite


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_a_map_lies_where_its_picture_does():
    """A wide picture is in the middle of its square, with margins above and below."""
    row = {
        "image_id": "wide",
        "picture": jpeg(Image.new("RGB", (48, 16), (128, 128, 128))),
        "where": [1.0] * 12,
        "where_height": 2,
        "where_width": 6,
    }
    found = sprite([[row]], {}, limit=100_000)
    sheet = np.asarray(Image.open(io.BytesIO(b64decode(found.source.split(",")[1]))), float)
    at = found.overlaid[0][0]
    square = sheet[at.y : at.y + at.side, at.x : at.x + at.side]
    warm = square[..., 0] - square[..., 2] > 40
    rows = np.flatnonzero(warm.mean(axis=1) > 0.5)
    third = at.side / 3
    assert abs(rows.min() - third) <= 2
    assert abs(rows.max() - 2 * third) <= 2
