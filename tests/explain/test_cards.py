"""Cards of a network's units: which images are on them, and what the maps say."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import case, hook_masked
from PIL import Image
from torch import nn

from shapray.config import Transform
from shapray.explain import cards as module
from shapray.explain.cards import cards, that_fit
from shapray.explain.extremes import Extremes
from shapray.pruning.criteria import MEMORY
from shapray.pruning.criteria.inputs import Inputs
from shapray.storage.explained import CARDS, EXTREMES

GREY = Transform(mode="L")


def extremes(group, ids, labels) -> Extremes:
    """Every unit goes up on the images from its own number on, and down on those before."""
    n, none = len(ids), np.full(group.n_units, np.nan)
    rows = [
        {
            "group": group.name,
            "unit": unit,
            "direction": direction,
            "rank": rank,
            "image_id": ids[image],
            "label": None if labels is None else int(labels[image]),
            "value": step / rank,
            "standard_error": 0.0,
        }
        for unit in range(group.n_units)
        for direction, step in (("up", 1), ("down", -1))
        for rank in range(1, n // 2 + 1)
        for image in [(unit + step * rank) % n]
    ]
    table = pa.Table.from_pylist(rows, schema=EXTREMES)
    return Extremes(table, none, none, none, none, none)


def made(name="digits", labels=True, transform=GREY, groups=None, **sizes):
    of = case(name)
    groups = [g for g in of.groups if groups is None or g.name in groups]
    known = of.labels if labels else None
    ids = [f"img{i}" for i in range(len(of.images))]
    inputs = Inputs(of.model, groups, of.images, known, 0, 16, MEMORY, None)
    orders = {g.name: list(range(g.n_units)) for g in groups}
    found = cards(
        inputs,
        ids,
        transform,
        orders,
        {g.name: extremes(g, ids, known) for g in groups},
        **{"n_units": 2, "n_images": 2, "steps": 32} | sizes,
    )
    assert found.schema.equals(CARDS)
    return of, found.to_pylist()


def test_both_ends_of_every_group_have_the_images_at_both_ends():
    of, rows = made(steps=1)
    expected = []
    for group in of.groups:
        last = group.n_units - 1
        for end, unit in [("top", last), ("top", last - 1), ("bottom", 0), ("bottom", 1)]:
            for direction, step in (("up", 1), ("down", -1)):
                for rank in (1, 2):
                    image = f"img{(unit + step * rank) % 6}"
                    expected.append((group.name, unit, end, direction, rank, image, step / rank))
    keys = ("group", "unit", "end", "direction", "rank", "image_id", "value")
    assert [tuple(row[key] for key in keys) for row in rows] == expected


@pytest.mark.parametrize("labels", [True, False])
def test_a_map_sums_to_what_the_logit_of_the_label_or_the_answer_loses(labels):
    of, rows = made(labels=labels)
    with torch.no_grad():
        whole = of.model(of.images.clone())
    targets = of.labels if labels else whole.argmax(1)
    for row in rows:
        group, image = of.group(row["group"]), int(row["image_id"][3:])
        kept = torch.arange(group.n_units) != row["unit"]
        left = hook_masked(of.model, group, of.images, kept)
        fall = (whole - left)[image, targets[image]].item()
        assert len(row["where"]) == row["where_height"] * row["where_width"]
        assert sum(row["where"]) == pytest.approx(fall, abs=0.01 * whole.abs().max().item())
        assert row["label"] == (of.labels[image].item() if labels else None)
    shapes = {row["group"]: (row["where_height"], row["where_width"]) for row in rows}
    assert shapes["fc1"] == (1, 1)
    assert shapes["conv1"] == (8, 8)


def test_the_picture_is_that_of_the_image():
    of, rows = made(steps=1)
    for row in rows:
        image = of.images[int(row["image_id"][3:]), 0].numpy()
        with Image.open(io.BytesIO(row["picture"])) as picture:
            assert np.abs(np.asarray(picture) / 255 - image).mean() < 0.08


def test_large_maps_are_brought_to_few_cells_that_sum_to_the_same(monkeypatch):
    _, before = made(groups=["conv1"], steps=4)
    monkeypatch.setattr(module, "MAP_SIDE", 5)
    _, after = made(groups=["conv1"], steps=4)
    for row, full in zip(after, before, strict=True):
        assert (row["where_height"], row["where_width"]) == (4, 4)
        blocks = np.array(full["where"]).reshape(4, 2, 4, 2).sum((1, 3))
        assert np.allclose(np.array(row["where"]).reshape(4, 4), blocks, atol=1e-5)


@pytest.mark.parametrize(
    ("n_groups", "fitting"), [(4, (3, 3)), (36, (3, 3)), (54, (3, 2)), (90, (3, 1)), (300, (1, 1))]
)
def test_a_network_of_many_groups_has_fewer_images_then_fewer_units(n_groups, fitting):
    assert that_fit(n_groups) == fitting


def test_no_unit_is_at_both_ends_and_units_without_extremes_have_no_card():
    _, rows = made("Vgg", transform=Transform(), groups=["features.7"], n_units=4, steps=1)
    for end, units in [("top", {6, 5, 4, 3}), ("bottom", {0, 1, 2})]:
        assert {row["unit"] for row in rows if row["end"] == end} == units

    of = case("digits")
    [group] = [g for g in of.groups if g.name == "fc1"]
    inputs = Inputs(of.model, [group], of.images, of.labels, 0, 16, MEMORY, None)
    none = np.zeros(group.n_units)
    nothing = Extremes(EXTREMES.empty_table(), none, none, none, none, none)
    found = cards(inputs, ["a"] * 6, GREY, {"fc1": range(64)}, {"fc1": nothing})
    assert found.schema.equals(CARDS)
    assert len(found) == 0


class Detached(nn.Module):
    """Says nothing of derivatives."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        with torch.no_grad():
            return self.model(x)

    def get_submodule(self, name):
        return self.model.get_submodule(name)


def test_a_network_without_derivatives_has_cards_without_maps():
    of = case("digits")
    [group] = [g for g in of.groups if g.name == "conv3"]
    ids = [f"img{i}" for i in range(6)]
    inputs = Inputs(Detached(of.model).eval(), [group], of.images, of.labels, 0, 16, MEMORY, None)
    own = {group.name: extremes(group, ids, of.labels)}
    found = cards(inputs, ids, GREY, {group.name: range(group.n_units)}, own)
    assert len(found) == 2 * 3 * 2 * 3
    assert found["where"].null_count == len(found)
    assert found["picture"].null_count == 0
