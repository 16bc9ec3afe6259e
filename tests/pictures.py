"""Small images and sets of them for the tests of what a job reads."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from shapray.config import Images, Transform
from shapray.inputs.images import ImageSet, open_images

KEY = "data.calibration"


def pixels(number, height=6, width=5, channels=3):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scaled(number, **size):
    """What `pixels(number)` becomes without a transform."""
    return torch.from_numpy(pixels(number, **size)).permute(2, 0, 1).float() / 255


def write_parquet(path, n=12, **columns):
    """n colour images in row groups of 4, three classes; `columns` replaces or (None) drops."""
    table = {
        "image_id": [f"img{i:02d}" for i in range(n)],
        "label": [i % 3 for i in range(n)],
        "fold": ["a" if i % 2 else "b" for i in range(n)],
        "image": [encoded(pixels(i)) for i in range(n)],
    } | columns
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({name: values for name, values in table.items() if values is not None}),
        path,
        row_group_size=4,
    )
    return str(path)


def make_folder(root, classes=("cat", "dog"), n=3):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(encoded(pixels(10 * c + i)))
    return root


def parquet(path, transform=None, key=KEY, **keys) -> ImageSet:
    return open_images(
        Images(source="parquet", path=str(path), **keys), transform or Transform(), key
    )


def folder(path, transform=None, **keys) -> ImageSet:
    return open_images(
        Images(source="imagefolder", path=str(path), **keys), transform or Transform(), KEY
    )


def given_images(items):
    return items


def callable_set(items, transform=None, **keys) -> ImageSet:
    section = Images(
        source="callable", factory=f"{__name__}:given_images", kwargs={"items": items}, **keys
    )
    return open_images(section, transform or Transform(), KEY)
