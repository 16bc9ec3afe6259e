"""Filter cards: the units at both ends of a group, on the images that move their scores most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from shapray.config import Transform
from shapray.explain.extremes import Extremes
from shapray.explain.thumbnail import thumbnail
from shapray.explain.where import STEPS, contributions, resized
from shapray.network.group import Group
from shapray.pruning.criteria.gates import check_slopes
from shapray.pruning.criteria.inputs import Inputs
from shapray.storage.explained import CARDS

N_UNITS, N_IMAGES = 3, 3
MAX_CARDS = 1300  # of a network: they take some 1.5 KB each
MAP_SIDE = 16  # cells, of a map's longer side


def cards(
    inputs: Inputs,
    ids: Sequence[str],
    transform: Transform,
    orders: Mapping[str, Sequence[int]],
    extremes: Mapping[str, Extremes],
    n_units: int = N_UNITS,
    n_images: int = N_IMAGES,
    steps: int = STEPS,
) -> pa.Table:
    """For the units at both ends of every group: the images that drive the score up and down most,
    each as a small picture, and where in it the unit acts on the logit of its label.

    Of images without labels it is the logit of the class that the network predicts. A map is at the
    resolution of what is read, or a whole fraction of it with at most `MAP_SIDE` cells a side. It
    is null where the network's outputs have no derivatives.

    Args:
        inputs: network, groups, and the calibration images.
        ids: of the images.
        transform: how the job makes tensors of images.
        orders: group -> its units in the job's ranking, those that go first in front.
        extremes: group -> what its shards say.
        n_units: at each end; a group of fewer than twice as many has no unit at both.
        n_images: each way.
        steps: of `contributions`.
    Returns:
        CARDS, group by group: the top from the best unit down, the bottom from the worst up.
    """
    place = {image_id: number for number, image_id in enumerate(ids)}
    with_maps = bool(inputs.groups) and _has_slopes(inputs)
    pictures = dict[int, bytes]()
    rows = list[dict[str, Any]]()
    for group in inputs.groups:
        for end, unit in _ends(orders[group.name], n_units):
            found = _on_card(extremes[group.name].table, unit, n_images)
            if not found:
                continue
            places = [place[row["image_id"]] for row in found]
            images = inputs.images[torch.tensor(places)].to(inputs.device)
            for number, image in zip(places, images, strict=True):
                if number not in pictures:
                    pictures[number] = thumbnail(image, transform)
            maps: Sequence[Tensor | None] = [None] * len(found)
            if with_maps:
                targets = _targets(inputs, images, places)
                maps = _maps(inputs, group, unit, images, targets, steps)
            rows += [
                {**row, "end": end, "picture": pictures[number], **_columns(of_image)}
                for row, number, of_image in zip(found, places, maps, strict=True)
            ]
    return pa.Table.from_pylist(rows, schema=CARDS)


def that_fit(n_groups: int, n_units: int = N_UNITS, n_images: int = N_IMAGES) -> tuple[int, int]:
    """How many units at each end and images each way; at least one."""
    while n_groups * 4 * n_units * n_images > MAX_CARDS and n_units * n_images > 1:
        n_units, n_images = (n_units, n_images - 1) if n_images > 1 else (n_units - 1, 1)
    return n_units, n_images


def _ends(order: Sequence[int], n: int) -> list[tuple[str, int]]:
    """(end, unit): up to `n` units at the top and `n` others at the bottom."""
    n_top = min(n, math.ceil(len(order) / 2))
    n_bottom = min(n, len(order) // 2)
    top = [("top", unit) for unit in order[::-1][:n_top]]
    return [*top, *(("bottom", unit) for unit in order[:n_bottom])]


def _on_card(extremes: pa.Table, unit: int, n_images: int) -> list[dict[str, Any]]:
    """The unit's rows of EXTREMES that are shown, less what a card has not."""
    shown = pc.and_(pc.equal(extremes["unit"], unit), pc.less_equal(extremes["rank"], n_images))
    return extremes.filter(shown).drop_columns(["standard_error"]).to_pylist()


def _has_slopes(inputs: Inputs) -> bool:
    try:
        check_slopes(
            replace(
                inputs,
                images=inputs.images[:1],
                labels=None if inputs.labels is None else inputs.labels[:1],
            )
        )
    except ValueError:
        return False
    return True


def _targets(inputs: Inputs, images: Tensor, places: list[int]) -> Tensor:
    if inputs.labels is not None:
        return inputs.labels[places].to(inputs.device)
    with torch.inference_mode():
        predicted = inputs.model(images.clone()).argmax(1)
    return predicted.clone()  # a tensor of inference mode is none for a gradient


def _maps(
    inputs: Inputs, group: Group, unit: int, images: Tensor, targets: Tensor, steps: int
) -> list[Tensor]:
    maps = contributions(inputs.model, group, unit, images, targets, steps, inputs.batch)
    height, width = maps.shape[1:]
    factor = math.ceil(max(height, width) / MAP_SIDE)
    return list(resized(maps, math.ceil(height / factor), math.ceil(width / factor)))


def _columns(of_image: Tensor | None) -> dict[str, Any]:
    if of_image is None:
        return {"where": None, "where_height": None, "where_width": None}
    height, width = of_image.shape
    where = of_image.flatten().tolist()
    return {"where": where, "where_height": height, "where_width": width}
