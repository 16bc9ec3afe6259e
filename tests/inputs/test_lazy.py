"""Images that are read when they are wanted, in place of a tensor of them."""

import numpy as np
import pytest
import torch
from plain import Plain, groups_by_name, images, lively

from shapray.config import Prune, Score
from shapray.inputs.lazy import LazyImages
from shapray.pruning.compressed import compressed
from shapray.pruning.criteria import CRITERIA, criterion
from shapray.pruning.criteria.inputs import AsScored
from shapray.shapley.pilot import Price

IMAGES = images(24)
ORDER = torch.randperm(24, generator=torch.Generator().manual_seed(0))


class Set:
    """Images one by one, and how often each was read."""

    def __init__(self) -> None:
        self.reads = [0] * len(IMAGES)

    def load(self, first, last):
        for i in range(first, last):
            self.reads[i] += 1
        return IMAGES[first:last]


def lazy(n_kept):
    read = Set()
    return read, LazyImages(read, ORDER, "cpu", n_kept * IMAGES[0].nbytes)


@pytest.mark.parametrize("n_kept", [0, 5, 100])
def test_they_are_those_of_a_tensor(n_kept):
    _, found = lazy(n_kept)
    tensor = IMAGES[ORDER]
    assert len(found) == 24
    for which in (slice(None), slice(1), slice(3, 9), torch.tensor([7, 0, 7])):
        assert torch.equal(found[which], tensor[which])
    for part, right in zip(found.split(7), tensor.split(7), strict=True):
        assert torch.equal(part, right)
    assert torch.equal(torch.cat([*found.first(10).split(3)]), tensor[:10])


def test_no_more_are_kept_than_there_is_room_for():
    read, found = lazy(5)
    for _ in range(3):
        found.first(8)[:]
    kept = ORDER[:5].tolist()
    assert [read.reads[i] for i in ORDER[:8].tolist()] == [1] * 5 + [3] * 3
    found[:]
    assert [read.reads[i] for i in kept] == [1] * 5


def test_who_changes_what_was_given_changes_nothing():
    _, found = lazy(100)
    found[:].zero_()
    next(found.split(4)).zero_()
    assert torch.equal(found[:], IMAGES[ORDER])


PRICES = dict.fromkeys(("conv1", "conv2", "fc1"), Price(2))
IDS = [str(i) for i in range(24)]
AS_SCORED = AsScored(Score(estimator="permutation"), PRICES, IDS, range(24))


@pytest.mark.parametrize("name", [name for name, needs in CRITERIA.items() if needs.images])
def test_criteria_make_the_same_of_them(name):
    model = lively(Plain())
    groups = [groups_by_name(model)[name] for name in ("conv1", "conv2", "fc1")]
    labels = torch.arange(24) % 3
    found, right = (
        criterion(name, model, groups, pixels, labels, batch=7, as_scored=AS_SCORED)
        for pixels in (lazy(5)[1], IMAGES[ORDER])
    )
    assert all(np.array_equal(found[group], right[group]) for group in right)


def test_repairs_make_the_same_of_them():
    model = lively(Plain())
    group = groups_by_name(model)["conv2"]
    found, right = (
        compressed(
            model,
            [group],
            {"conv2": [0, 2]},
            ["batchnorm", "least_squares", "distill"],
            pixels,
            None,
            Prune(distill={"steps": 3}),
            seed=0,
        ).network.state_dict()
        for pixels in (lazy(5)[1], IMAGES[ORDER])
    )
    assert all(torch.equal(found[name], value) for name, value in right.items())
