"""Which channel every number in a running network belongs to.

A *label* is the number of a channel that some layer puts out, or of an entry of a parameter; 0 is
none. Channels that can only be removed together are united into one *class*. Labels lie beside the
numbers themselves: a tensor's storage has a second one of its size, so that a view of the numbers
is a view of their labels, whatever made it, and what is written into a view is seen by all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

MOST = 2**24  # labels are float32, so that whatever moves numbers can move them; it counts so far
SWEEP = 256  # storages between two looks for those that are gone


class Classes:
    """Labels in disjoint classes (union by the larger label)."""

    def __init__(self) -> None:
        self._parents = [0]

    def __len__(self) -> int:
        """Labels given out, 0 among them."""
        return len(self._parents)

    def fresh(self, n: int) -> Tensor:
        """New labels, (n,) float32, each a class of its own.

        Raises:
            ValueError: there would be more than float32 can count.
        """
        first = len(self._parents)
        if first + n > MOST:
            raise ValueError(f"the network has more than {MOST:,} channels and bare parameters")
        self._parents.extend(range(first, first + n))
        return torch.arange(first, first + n, dtype=torch.float32)

    def find(self, label: int) -> int:
        """The label that stands for a label's class: the largest of it."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def unite(self, one: int, other: int) -> None:
        one, other = self.find(one), self.find(other)
        self._parents[min(one, other)] = max(one, other)

    def found(self, labels: Tensor) -> Tensor:
        """Every label's class, in the labels' shape: int64."""
        different, place = _runs(labels)
        return torch.tensor([self.find(label) for label in different], dtype=torch.int64)[place]

    def among(self, labels: Tensor) -> list[int]:
        """The different classes among labels, in ascending order, 0 left out."""
        return sorted({self.find(label) for label in _runs(labels)[0]} - {0})


def _runs(labels: Tensor) -> tuple[list[int], Tensor]:
    """Different labels, and every entry's place among them. Channels lie in runs: one look at each
    run is quicker than sorting all."""
    if labels.numel() == 0:
        return [], torch.zeros(labels.shape, dtype=torch.int64)
    runs, places = torch.unique_consecutive(labels.flatten(), return_inverse=True)
    different, of_run = torch.unique(runs, return_inverse=True)
    return different.long().tolist(), of_run[places].view(labels.shape)


@dataclass
class _Storage:
    alive: StorageWeakRef
    """Keeps the storage's address from being given to another."""
    element_size: int
    """Bytes of a number; what looks at the bytes as other numbers finds no labels, but for the real
    and imaginary parts of complex numbers."""
    is_complex: bool
    labels: Tensor | None
    """One for each number, or None where no number has any."""
    above: int
    """Bit i: layer i was run on the way to it."""


class LabelledTensors:
    """The labels of tensors, by the storages that they look into."""

    def __init__(self) -> None:
        self._storages: dict[int, _Storage] = {}
        self._sweep_at = SWEEP

    def labels(self, tensor: Tensor) -> Tensor | None:
        """In the tensor's shape; None if no number of its storage has any."""
        storage = self._storages.get(_address(tensor))
        if storage is None or storage.labels is None:
            return None
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        if storage.is_complex and not tensor.is_complex():
            return storage.labels.as_strided(size, [s // 2 for s in stride], offset // 2)
        if storage.element_size != tensor.element_size():
            return None
        return storage.labels.as_strided(size, stride, offset)

    def of(self, tensor: Tensor) -> Tensor:
        """In the tensor's shape; 0 where a number has none."""
        labels = self.labels(tensor)
        return torch.zeros(()).expand(tensor.shape) if labels is None else labels

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Give a tensor labels that can be broadcast to its shape."""
        storage = self._storage(tensor)
        if storage.labels is None:
            n_numbers = tensor.untyped_storage().nbytes() // storage.element_size
            storage.labels = torch.zeros(n_numbers)
        size, stride, offset = tensor.size(), tensor.stride(), tensor.storage_offset()
        # a dimension that is expanded has the same number everywhere: written once
        once = tuple(slice(0, 1) if s == 0 else slice(None) for s in stride)
        storage.labels.as_strided(size, stride, offset)[once] = labels.expand(size)[once]

    def above(self, tensor: Tensor) -> int:
        """The layers on the way to a tensor, a bit each."""
        storage = self._storages.get(_address(tensor))
        return 0 if storage is None else storage.above

    def put_above(self, tensor: Tensor, layers: int) -> None:
        """Add to the layers on the way to a tensor."""
        if layers:
            self._storage(tensor).above |= layers

    def _storage(self, tensor: Tensor) -> _Storage:
        address = _address(tensor)
        if address not in self._storages:
            self._sweep()
            alive = StorageWeakRef(tensor.untyped_storage())
            self._storages[address] = _Storage(
                alive, tensor.element_size(), tensor.is_complex(), None, 0
            )
        return self._storages[address]

    def _sweep(self) -> None:
        """Forget the labels of tensors that are gone."""
        if len(self._storages) < self._sweep_at:
            return
        self._storages = {a: s for a, s in self._storages.items() if not s.alive.expired()}
        self._sweep_at = 2 * len(self._storages) + SWEEP


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
