"""The small pictures of a group's cards, as one JPEG.

Of each card a row of the pictures, below it the same with the heat map of where the unit matters,
and its kernel at the end of the row. Where a unit adds to the logit a picture is brighter and warm,
where it takes from it darker and cold, so that one sees which without colours.
"""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

_WARM, _COLD = np.array([255.0, 205.0, 60.0]), np.array([10.0, 25.0, 110.0])
# Side of a picture and quality of the JPEG, until the sprite is small enough.
_STEPS = ((56, 76), (56, 55), (40, 60), (32, 55), (32, 35), (24, 35), (20, 25))


@dataclass(frozen=True)
class Place:
    """Where a picture lies in its sprite, in pixels, and how large it is there."""

    x: int
    y: int
    side: int


@dataclass(frozen=True)
class Sprite:
    """Pictures in one JPEG.

    Attributes:
        source: a data URL.
        width, height: in pixels.
        places: of `pictures[i][j]`, and of the same with its heat map.
        kernels: of those rows that have one.
    """

    source: str
    width: int
    height: int
    places: list[list[Place]]
    overlaid: list[list[Place]]
    kernels: dict[int, Place]


def sprite(
    rows: Sequence[Sequence[Mapping[str, Any]]], kernels: Mapping[int, bytes], limit: int
) -> Sprite:
    """Put the pictures of several cards together.

    Args:
        rows: of each card, rows of the table of cards.
        kernels: PNG of a card's kernel.
        limit: bytes of the JPEG, if that can be.
    Raises:
        ValueError: bytes that are no picture; the message says which image's.
    """
    decoded = [[_decoded(row["picture"], row["image_id"]) for row in card] for card in rows]
    own = max((max(one.size) for card in decoded for one in card if one), default=1)
    n_columns = max((len(card) for card in decoded), default=0) + bool(kernels)
    for largest, quality in _STEPS:
        # Small pictures are not blown up, but their heat maps need some room.
        side = min(largest, max(own, 24))
        sheet = Image.new("RGB", (max(1, n_columns * side), max(1, 2 * len(rows) * side)))
        places, overlaid = [], []
        of_kernels: dict[int, Place] = {}
        for number, (card, pictures) in enumerate(zip(rows, decoded)):
            y = 2 * number * side
            for column, (row, picture) in enumerate(zip(card, pictures)):
                if picture is not None:
                    small = _fitted(picture, side)
                    sheet.paste(small, (column * side, y))
                    heat = _with_heat(small, row, _place(picture, side))
                    sheet.paste(heat, (column * side, y + side))
            places.append([Place(column * side, y, side) for column in range(len(card))])
            overlaid.append([Place(column * side, y + side, side) for column in range(len(card))])
            if number in kernels:
                kernel = _decoded(kernels[number], f"kernel {number}")
                assert kernel is not None
                at = ((n_columns - 1) * side, y)
                sheet.paste(kernel.resize((side, side), Image.Resampling.NEAREST), at)
                of_kernels[number] = Place(*at, side)
        buffer = io.BytesIO()
        sheet.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            break
    source = "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()
    width, height = sheet.size
    return Sprite(source, width, height, places, overlaid, of_kernels)


def _decoded(data: bytes | None, image_id: str) -> Image.Image | None:
    if data is None:
        return None
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"the picture of {image_id!r} is none that can be read") from error


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    """As large as fits, in the middle of a square."""
    how = Image.Resampling.NEAREST if side > max(picture.size) else Image.Resampling.LANCZOS
    left, upper, right, lower = box = _place(picture, side)
    square = Image.new("RGB", (side, side))
    square.paste(picture.resize((right - left, lower - upper), how), box)
    return square


def _place(picture: Image.Image, side: int) -> tuple[int, int, int, int]:
    """Where a picture lies in the square: left, upper, right, lower."""
    width, height = (max(1, round(length * side / max(picture.size))) for length in picture.size)
    left, upper = (side - width) // 2, (side - height) // 2
    return left, upper, left + width, upper + height


def _with_heat(
    picture: Image.Image, row: Mapping[str, Any], box: tuple[int, int, int, int]
) -> Image.Image:
    """A square in grey, with the map where its picture lies."""
    heat = row["where"]
    height, width = row["where_height"], row["where_width"]
    if not heat or not height or not width or len(heat) != height * width:
        return picture
    values = np.nan_to_num(np.asarray(heat, np.float32).reshape(height, width))
    strongest = float(np.abs(values).max()) or 1.0
    size = box[2] - box[0], box[3] - box[1]
    field = Image.new("F", picture.size)
    field.paste(Image.fromarray(values / strongest).resize(size, Image.Resampling.BILINEAR), box)
    grey = np.asarray(picture.convert("L"), float)[..., None] * 0.45 + 60
    strength = np.clip(np.asarray(field), -1, 1)[..., None]
    mixed = grey + np.abs(strength) * 0.85 * (np.where(strength > 0, _WARM, _COLD) - grey)
    return Image.fromarray(mixed.round().astype(np.uint8))
