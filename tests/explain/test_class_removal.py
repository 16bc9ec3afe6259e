"""Removing the units of a class: which ones go, and what the network cut for real makes of it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from cases import case
from plain import without
from torch import nn

from shapray.explain.class_removal import class_removal
from shapray.network.group import Channels, Group
from shapray.pruning.criteria import MEMORY
from shapray.pruning.criteria.inputs import Inputs
from shapray.pruning.evaluate import wilson_interval
from shapray.storage.explained import CLASS_REMOVAL


def table(means: dict[str, np.ndarray], **columns) -> pa.Table:
    """Group, unit, mean."""
    rows = [(group, unit, mean) for group, of in means.items() for unit, mean in enumerate(of)]
    names, units, values = zip(*rows, strict=True)
    some = {name: [value] * len(rows) for name, value in columns.items()}
    return pa.table({"group": names, "unit": units, "mean": values, **some})


def random_scores(groups, labels, seed=0):
    """scores and class_scores of random numbers, and the latter as an array per label and group."""
    random = np.random.default_rng(seed)
    by_label = {c: {g.name: random.normal(size=g.n_units) for g in groups} for c in labels}
    overall = {g.name: random.normal(size=g.n_units) for g in groups}
    classes = pa.concat_tables([table(of, label=c) for c, of in by_label.items()])
    return table(overall), of_groups(classes), overall, by_label


def of_groups(class_scores: pa.Table):
    return lambda group: class_scores.filter(pc.equal(class_scores["group"], group))


def cut(model, example, names):
    removed: dict[str, list[int]] = {}
    for name in names:
        group, unit = name.rsplit("/", 1)
        removed.setdefault(group, []).append(int(unit))
    return without(model, example, removed)


@pytest.mark.parametrize("name", ["Vgg", "Residual", "digits"])  # flat and deep groups
def test_accuracies_are_those_of_the_network_cut_for_real(name):
    of = case(name)
    with torch.no_grad():
        answers = of.model(of.images.clone()).argmax(1)
    labels = answers.clone()
    labels[0] = (answers[0] + 1) % 3  # so that before is not all right either
    known = sorted(set(labels.tolist()) | {0, 1, 2})
    scores, class_scores, *_ = random_scores(of.groups, known)
    inputs = Inputs(of.model, of.groups, of.images, labels, 0, 2, MEMORY, None)
    found = class_removal(inputs, scores, class_scores, share=0.3)
    assert found.schema.equals(CLASS_REMOVAL)
    rows = found.to_pylist()
    kinds = ("class", "random", "score")
    expected = [(c, kind) for c in sorted(set(labels.tolist())) for kind in kinds]
    assert [(row["label"], row["removed"]) for row in rows] == expected
    for row in rows:
        own = labels == row["label"]
        with torch.no_grad():
            left = cut(of.model, of.example, row["units"])(of.images.clone()).argmax(1) == labels
        before = answers == labels
        assert (row["n_images"], row["n_others"]) == (int(own.sum()), int((~own).sum()))
        for key, some in (("top1", own), ("others", ~own)):
            if not some.any():
                assert row[f"{key}_after"] is None
                continue
            hits, n = int(left[some].sum()), int(some.sum())
            assert row[f"{key}_before"] == pytest.approx(before[some].float().mean().item())
            assert row[f"{key}_after"] == pytest.approx(hits / n)
            assert (row[f"{key}_low"], row[f"{key}_high"]) == wilson_interval(hits, n)


def test_the_units_that_go_are_those_that_the_words_say():
    of = case("Vgg")
    scores, class_scores, overall, by_label = random_scores(of.groups, range(4))
    labels = torch.tensor([0, 3, 3, 0, 4])  # no scores of class 4
    inputs = Inputs(of.model, of.groups, of.images, labels, 5, 8, MEMORY, None)
    rows = class_removal(inputs, scores, class_scores, n_classes=3, share=0.2).to_pylist()
    assert sorted({row["label"] for row in rows}) == [0, 3]
    n = round(0.2 * sum(g.n_units for g in of.groups))
    for row in rows:
        assert row["n_units"] == len(set(row["units"])) == n
        if row["removed"] == "score":
            worth = {
                f"{g}/{u}": v for g, of_units in overall.items() for u, v in enumerate(of_units)
            }
        elif row["removed"] == "class":
            worth = {
                f"{g}/{u}": v - np.mean([by_label[c][g][u] for c in range(4) if c != row["label"]])
                for g, of_units in by_label[row["label"]].items()
                for u, v in enumerate(of_units)
            }
            own = row["units"]
        else:
            here, like = ([name.rsplit("/")[0] for name in names] for names in (row["units"], own))
            assert sorted(here) == sorted(like)
            continue
        assert row["units"] == sorted(worth, key=worth.get, reverse=True)[:n]
    chance = [row["units"] for row in rows if row["removed"] == "random"]
    assert chance[0] != chance[1]
    again = class_removal(inputs, scores, class_scores, n_classes=3, share=0.2)
    assert again.to_pylist() == rows
    most = class_removal(inputs, scores, class_scores, n_classes=1, share=0.2)
    assert most.to_pylist() == rows[:3]


class ByClass(nn.Module):
    """Unit u is all there is for class u."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.first.weight)
        nn.init.eye_(self.second.weight)

    def forward(self, x):
        return self.second(self.first(x.flatten(1)).relu())


def test_a_class_falls_with_its_unit_and_the_others_stay():
    reader = Channels("second", (0, 1, 2, 3))
    group = Group("first", 4, "linear", ("first", "second"), (reader,), True, None)
    labels = torch.tensor([1, 2, 3, 1, 2, 3])
    images = nn.functional.one_hot(labels, 4).float().view(6, 1, 2, 2)
    inputs = Inputs(ByClass().eval(), [group], images, labels, 0, 4, MEMORY, None)
    means = {c: {"first": np.eye(4)[c]} for c in range(4)}
    class_scores = pa.concat_tables([table(of, label=c) for c, of in means.items()])
    found = class_removal(inputs, table({"first": np.ones(4)}), of_groups(class_scores))
    for row in found.to_pylist():
        if row["removed"] == "class":
            assert row["units"] == [f"first/{row['label']}"]
            assert (row["top1_before"], row["top1_after"]) == (1, 0)
            assert (row["others_before"], row["others_after"]) == (1, 1)


def test_a_unit_of_every_group_stays_and_one_class_alone_says_nothing():
    of = case("Vgg")
    scores, class_scores, *_ = random_scores(of.groups, range(2))
    labels = torch.tensor([0, 1, 0, 1, 0])
    inputs = Inputs(of.model, of.groups, of.images, labels, 0, 8, MEMORY, None)
    for row in class_removal(inputs, scores, class_scores, share=1.0).to_pylist():
        assert row["n_units"] == sum(g.n_units - 1 for g in of.groups)

    def one(group):
        rows = class_scores(group)
        return rows.filter(pc.equal(rows["label"], 0))

    assert len(class_removal(inputs, scores, one)) == 0


def test_a_class_without_scores_in_a_group_takes_no_units_of_it():
    """Groups may be scored on different numbers of images."""
    of = case("Vgg")
    scores, class_scores, *_ = random_scores(of.groups, range(3))
    scarce = of.groups[0].name
    labels = torch.tensor([0, 1, 2, 1, 0])
    inputs = Inputs(of.model, of.groups, of.images, labels, 0, 8, MEMORY, None)

    def fewer(group):
        rows = class_scores(group)
        return rows.filter(pc.less(rows["label"], 2)) if group == scarce else rows

    by_label = {
        row["label"]: {name.split("/")[0] for name in row["units"]}
        for row in class_removal(inputs, scores, fewer, share=0.3).to_pylist()
        if row["removed"] == "class"
    }
    assert scarce not in by_label[2]
    assert scarce in by_label[0] | by_label[1]
