"""Images of data set objects: the user's own, and torchvision's."""

import sys

import numpy as np
import pytest
import torch
from pictures import KEY, callable_set, pixels
from PIL import Image as Pillow

from shapray.config import Images, Transform
from shapray.errors import JobError
from shapray.inputs.images import open_images


def test_callable_forms_agree():
    array = pixels(0)
    chw = torch.from_numpy(array).permute(2, 0, 1)
    images = callable_set(
        [(Pillow.fromarray(array), 0), (array, 1), (chw, 2), (chw / 255, torch.tensor(3))],
        Transform(mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
    )
    batch = images.load(0, 4)
    assert images.labels.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(image, batch[0]) for image in batch)
    expected = (chw / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.2, 0.1]
    ).view(3, 1, 1)
    torch.testing.assert_close(batch[0], expected)


def test_a_data_set_whose_items_fail_is_named():
    said = r"item 0 of the dict that .*given_images made cannot be read: KeyError: 0"
    with pytest.raises(JobError, match=said):
        callable_set({"a": pixels(0)})


def test_callable_of_images_only_has_no_labels():
    assert callable_set([pixels(0), pixels(1)]).labels is None
    assert callable_set([(pixels(0), 5)], label_column=None).labels is None


class Counting:
    """Items that count how often they are opened; `told` are the labels that it says it has."""

    def __init__(self, told):
        self.targets, self.opened = told, []

    def __len__(self):
        return 50

    def __getitem__(self, row):
        self.opened.append(row)
        return pixels(row), row % 5


@pytest.mark.parametrize(
    ("told", "most"), [([i % 5 for i in range(50)], 5), ([7] * 50, 60), ("unknown", 60)]
)
def test_items_stay_closed_where_the_data_set_tells_its_labels(told, most):
    items = Counting(told)
    images = callable_set(items)
    assert images.labels.tolist() == [i % 5 for i in range(50)]
    assert len(items.opened) <= most


def test_callable_mistakes():
    with pytest.raises(JobError, match=r"image '1' has label 'dog'; labels are integers"):
        callable_set([(pixels(0), 1), (pixels(1), "dog")])
    with pytest.raises(JobError, match=r"factory: .* gave a int; a sequence"):
        callable_set(3)
    with pytest.raises(JobError, match=r"image '0' .*\(1, 6, 5\); mode RGB needs \(3"):
        callable_set([pixels(0, channels=1)])
    with pytest.raises(JobError, match="no images there"):
        callable_set([])


def test_torchvision_data_sets(tmp_path):
    section = Images(
        source="torchvision",
        factory="FakeData",
        kwargs={"size": 8, "image_size": [3, 10, 10], "num_classes": 4},
    )
    images = open_images(section, Transform(), KEY)
    assert images.load(0, 8).shape == (8, 3, 10, 10)
    assert images.labels.max() < 4
    missing = Images(source="torchvision", factory="CIFAR10", kwargs={"root": str(tmp_path)})
    with pytest.raises(JobError, match=r"CIFAR10.*failed: .*Dataset not found"):
        open_images(missing, Transform(), KEY)
    assert not list(tmp_path.iterdir())  # nothing was downloaded
    unknown = Images(source="torchvision", factory="CIFAR11")
    with pytest.raises(JobError, match=r"has no 'CIFAR11'; close to it: .*CIFAR10"):
        open_images(unknown, Transform(), KEY)


def test_labels_of_other_libraries_are_integers_too():
    labels = [np.int64(3), torch.tensor(1), torch.tensor([2]), 0]
    items = [(pixels(i), label) for i, label in enumerate(labels)]
    assert callable_set(items).labels.tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("label", [1.0, torch.tensor(1.0), torch.tensor([0, 1]), 2**63, -1])
def test_labels_that_are_none(label):
    with pytest.raises(JobError, match=r"image '1' has label .*; labels are integers from 0"):
        callable_set([(pixels(0), 1), (pixels(1), label)])


class Ending:
    """A data set that ends the program at some point."""

    def __init__(self, at):
        self.at = at
        self.end_at("start")

    def end_at(self, point):
        if self.at == point:
            sys.exit(2)

    def __len__(self):
        self.end_at("length")
        return 3

    def __getitem__(self, row):
        self.end_at(row)
        return pixels(row), row


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("start", r".*Ending\(.*\) failed"),
        ("length", "the length of the Ending that .* made cannot be read"),
        (1, "item 1 of the Ending that .* made cannot be read"),
    ],
)
def test_a_data_set_that_ends_the_program(at, words):
    section = Images(source="callable", factory=f"{__name__}:Ending", kwargs={"at": at})
    said = rf"{KEY}\.factory: {words}: it ended the program with exit status 2"
    with pytest.raises(JobError, match=said):
        open_images(section, Transform(), KEY)
