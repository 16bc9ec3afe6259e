"""Labels lie beside numbers: what looks at these, or writes them, finds and writes those."""

import gc

import pytest
import torch

from shapray.network import labels
from shapray.network.labels import SWEEP, Classes, LabelledTensors


def numbered(*shape: int) -> tuple[LabelledTensors, torch.Tensor]:
    """A tensor whose labels are 1, 2, ... along dimension 1."""
    tensors, numbers = LabelledTensors(), torch.randn(*shape)
    along = torch.arange(1.0, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    tensors.put(numbers, along)
    return tensors, numbers


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:3],
        lambda x: x.transpose(1, 3),
        lambda x: x.unflatten(1, (2, 2)).transpose(1, 2),
        lambda x: x.chunk(2, 1)[1],
        lambda x: x[:, :, ::2, 0],
        lambda x: x.unbind(1)[2],
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
)
def test_a_view_has_the_labels_of_what_it_looks_at(view):
    tensors, numbers = numbered(2, 4, 3, 3)
    every = torch.arange(1.0, 5).view(4, 1, 1).expand(2, 4, 3, 3)
    assert torch.equal(tensors.labels(view(numbers)), view(every))


def test_what_is_written_into_a_view_is_seen_by_all():
    tensors, numbers = numbered(2, 4, 3, 3)
    tensors.put(numbers[:, 2], torch.tensor(9.0))
    assert tensors.labels(numbers)[0, :, 0, 0].tolist() == [1, 2, 9, 4]
    assert tensors.labels(numbers.flatten(1)[:, 18:27]).unique().tolist() == [9]


def test_other_tensors_and_other_readings_of_the_bytes_have_none():
    tensors, numbers = numbered(2, 4, 3, 3)
    assert tensors.labels(numbers.clone()) is None
    assert tensors.labels(numbers.view(torch.float16)) is None
    assert tensors.labels(numbers.view(torch.int32)) is not None  # a number for a number


def test_parts_of_complex_numbers_have_the_labels_of_the_whole():
    tensors, numbers = LabelledTensors(), torch.zeros(1, 3, 2, dtype=torch.complex64)
    tensors.put(numbers, torch.tensor([[1.0], [2.0], [3.0]]))
    for part in (numbers.real, numbers.imag, torch.view_as_real(numbers)[..., 0]):
        assert tensors.labels(part)[0, :, 1].tolist() == [1, 2, 3]
    assert tensors.labels(torch.view_as_real(numbers)[:, 1:]).unique().tolist() == [2, 3]


def test_storages_that_are_gone_are_forgotten():
    tensors = LabelledTensors()
    stays = torch.zeros(1, 2)
    tensors.put(stays, torch.tensor([1.0, 2.0]))
    for _ in range(3 * SWEEP):
        tensors.put(torch.zeros(1, 2), torch.tensor([3.0, 4.0]))
        fresh = torch.zeros(1, 2)  # may lie where the last one did
        assert tensors.labels(fresh) is None
    gc.collect()
    assert len(tensors._storages) <= SWEEP + 1
    assert tensors.labels(stays).tolist() == [[1, 2]]


def test_layers_on_the_way_add_up():
    tensors, numbers = numbered(1, 2)
    tensors.put_above(numbers, 0b01)
    tensors.put_above(numbers[:, 1:], 0b10)
    assert tensors.above(numbers) == 0b11
    assert tensors.above(torch.zeros(1)) == 0


def test_classes_unite_and_stand_for_each_other():
    classes = Classes()
    assert classes.fresh(4).tolist() == [1, 2, 3, 4]
    classes.unite(1, 3)
    classes.unite(3, 2)
    assert classes.found(torch.tensor([[0.0, 1], [2, 4]])).tolist() == [[0, 3], [3, 4]]
    assert classes.among(torch.tensor([4.0, 0, 1, 2])) == [3, 4]
    assert classes.among(torch.zeros(0)) == []


def test_more_channels_than_can_be_told_apart(monkeypatch):
    monkeypatch.setattr(labels, "MOST", 8)
    classes = Classes()
    classes.fresh(7)
    with pytest.raises(ValueError, match="more than 8 channels and bare parameters"):
        classes.fresh(1)
