"""Units without which the network may do better: against the network cut for real."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from cases import case
from plain import without
from torch.nn import functional as F

from shapray.explain.extremes import Extremes
from shapray.explain.negatives import negatives
from shapray.pruning.criteria import MEMORY
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import Z
from shapray.storage.explained import EXTREMES, NEGATIVES


def scores(means: dict[str, list[float]]) -> pa.Table:
    rows = [(group, unit, mean) for group, of in means.items() for unit, mean in enumerate(of)]
    names, units, values = zip(*rows, strict=True)
    errors = [None if unit == 0 else 0.01 * unit for unit in units]
    return pa.table({"group": names, "unit": units, "mean": values, "total_error": errors})


def extremes(n_units: int) -> Extremes:
    """Every unit's worst class is its number less one."""
    share = np.linspace(0.1, 0.9, n_units)
    known = np.where(np.arange(n_units) == 0, np.nan, share)
    return Extremes(EXTREMES.empty_table(), share, -share, share, np.arange(n_units) - 1, known)


# flat, deep, in-place; the images' number is no multiple of the batch
@pytest.mark.parametrize("name", ["Vgg", "Residual", "SqueezeExcite", "digits"])
def test_changes_are_those_of_the_network_cut_for_real(name):
    of = case(name)
    groups = of.groups[:3]
    means = {g.name: [0.5, *(-0.1 * u for u in range(1, g.n_units))] for g in groups}
    inputs = Inputs(of.model, groups, of.images, of.labels, 0, 2, MEMORY, None)
    found = negatives(
        inputs, inputs.scorer, scores(means), {g.name: extremes(g.n_units) for g in groups}, n=3
    )
    assert found.schema.equals(NEGATIVES)
    rows = found.to_pylist()
    expected = [(g.name, u) for g in groups for u in range(g.n_units - 1, g.n_units - 4, -1)]
    assert [(row["group"], row["unit"]) for row in rows] == expected

    with torch.no_grad():
        whole = of.model(of.images.clone()).double()
        for row in rows:
            cut = without(of.model, of.example, {row["group"]: [row["unit"]]})
            left = cut(of.images.clone()).double()
            change = (
                F.cross_entropy(left, of.labels, reduction="none")
                - F.cross_entropy(whole, of.labels, reduction="none")
            ).numpy()
            assert row["loss_change"] == pytest.approx(change.mean(), abs=1e-4)
            half = Z * change.std(ddof=1) / np.sqrt(len(change))
            assert row["loss_high"] - row["loss_low"] == pytest.approx(2 * half, abs=2e-4)
            hits = (left.argmax(1) == of.labels).float() - (whole.argmax(1) == of.labels).float()
            assert row["top1_change"] == pytest.approx(hits.mean().item(), abs=1e-6)
            assert row["n_images"] == len(of.images)
            assert row["label"] == row["unit"] - 1
            assert row["total_error"] == pytest.approx(0.01 * row["unit"])


def test_no_unit_below_zero_gives_an_empty_table_and_units_of_none_a_class_of_none():
    of = case("digits")
    [group] = [g for g in of.groups if g.name == "conv3"]
    inputs = Inputs(of.model, [group], of.images, of.labels, 0, 4, MEMORY, None)
    own = {group.name: extremes(group.n_units)}
    none = negatives(inputs, inputs.scorer, scores({group.name: [0.0] * group.n_units}), own)
    assert none.schema.equals(NEGATIVES)
    assert len(none) == 0
    below = scores({group.name: [-1.0] + [0.0] * (group.n_units - 1)})
    [row] = negatives(inputs, inputs.scorer, below, own).to_pylist()
    assert (row["label"], row["label_share"], row["total_error"]) == (None, None, None)
