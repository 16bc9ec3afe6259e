"""What operations on numbers mean for the labels of channels: which go together, which are mixed.

Labels are float32 tensors of the numbers' shape, see `labels`. Where an operation mixes channels
that need not go together (a mean over channels), its result belongs to none of them; it is labelled
as a *mixture*, and those it is made of are excluded as soon as anything is computed from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shapray.network.labels import Classes

MIXED = "its channels are mixed"


@dataclass(frozen=True)
class _Mixture:
    labels: tuple[int, ...]
    reason: str


class Coupling:
    """Labels, their classes, and why some channels cannot be followed.

    Attributes:
        classes: of the labels so far.
        n_parameters: labels from 1 to this are entries of parameters; see `fresh_parameter`.
    """

    def __init__(self) -> None:
        self.classes = Classes()
        self.n_parameters = 0
        self._mixtures: dict[int, _Mixture] = {}
        self._reasons: dict[int, str] = {}  # label -> why its class is not followed; the first

    def fresh_parameter(self, n: int) -> Tensor:
        """New labels for entries of a parameter; before those of any channel."""
        assert len(self.classes) == self.n_parameters + 1, "channels have labels already"
        self.n_parameters += n
        return self.classes.fresh(n)

    def reasons(self) -> dict[int, str]:
        """Why classes are not followed, by class: the first reason of each."""
        found: dict[int, str] = {}
        for label, reason in self._reasons.items():
            found.setdefault(self.classes.find(label), reason)
        return found

    def exclude(self, labels: Tensor, reason: str) -> None:
        """These channels are not followed; where there are mixtures, what they are made of."""
        for label in self.classes.among(labels):
            self._exclude(label, reason)

    def _exclude(self, label: int, reason: str) -> None:
        mixture = self._mixtures.pop(label, None)
        if mixture is None:
            self._reasons.setdefault(label, reason)
            return
        for source in mixture.labels:
            self._exclude(self.classes.find(source), mixture.reason)

    def made_of(self, labels: Tensor) -> set[int]:
        """The labels there are, and those that mixtures among them are made of."""
        found: set[int] = set()
        pending = self.classes.among(labels)
        while pending:
            label = pending.pop()
            if label in self._mixtures:
                pending.extend(self._mixtures[label].labels)
            else:
                found.add(label)
        return found

    def settled(self, labels: Tensor) -> Tensor:
        """Something is computed from these: mixtures among them are excluded, and no label."""
        if not self._mixtures:
            return labels
        mixed = [label for label in self.classes.among(labels) if label in self._mixtures]
        if not mixed:
            return labels
        for label in mixed:
            self._exclude(label, "")
        return labels.masked_fill(torch.isin(self.classes.found(labels), torch.tensor(mixed)), 0)

    def mixture(self, labels: Tensor, reason: str) -> Tensor:
        """A label, a tensor of no dimension, for what is made of all of these; 0 if of none."""
        among = tuple(self.classes.among(labels))
        if not among:
            return torch.zeros(())
        label = self.classes.fresh(1)[0]
        self._mixtures[int(label)] = _Mixture(among, reason)
        return label

    def together(self, operands: Sequence[Tensor], reason: str) -> Tensor:
        """Labels of what is computed entry by entry: entries that meet go together.

        An operand's channel that is spread over several of another (a map over space times every
        channel) does not go with them: it is excluded, a parameter's entry is no channel's.

        Args:
            operands: broadcastable, those that have labels.
            reason: to exclude what is spread.
        """
        if len(operands) == 1:  # also of a mixture, which may be only looked at
            return operands[0]
        operands = [self.settled(operand) for operand in operands]
        labels = torch.broadcast_tensors(*operands)[0]
        for operand in operands[1:]:
            labels = self._meet(labels, operand, reason)
        return labels

    def _meet(self, one: Tensor, other: Tensor, reason: str) -> Tensor:
        a, b = torch.broadcast_tensors(one, other)
        both = (a > 0) & (b > 0) & (a != b)
        if both.any():
            pairs = self._pairs(a[both], b[both])
            for spread, place in ((b, 1), (a, 0)):
                if _repeats(spread):
                    found = _with_several([p if place == 0 else p[::-1] for p in pairs])
                    if found:
                        self._spread(found, reason)
                        gone = torch.isin(self.classes.found(spread), torch.tensor(sorted(found)))
                        a, b = (
                            side.masked_fill(gone, 0) if i == place else side
                            for i, side in enumerate((a, b))
                        )
                        pairs = [p for p in pairs if p[place] not in found]
            for pair in pairs:
                self.classes.unite(*pair)
        return torch.where(a > 0, a, b)

    def _pairs(self, a: Tensor, b: Tensor) -> list[tuple[int, int]]:
        """The different pairs of classes that meet."""
        met = torch.unique_consecutive(a.double() * 2**24 + b.double()).long().unique().tolist()
        pairs = {(self.classes.find(p >> 24), self.classes.find(p & 0xFFFFFF)) for p in met}
        return sorted(p for p in pairs if p[0] != p[1])

    def _spread(self, labels: set[int], reason: str) -> None:
        for label in labels:
            if label > self.n_parameters:
                self._exclude(label, reason)

    def one_along(self, labels: Tensor, dims: Sequence[int]) -> Tensor:
        """Unite what lies along some dimensions (a layer has one weight for all of it).

        Returns:
            (the other dimensions, in their order).
        """
        largest, pairs = self._along(self.settled(labels), dims)
        for pair in pairs:
            self.classes.unite(*pair)
        return largest

    def grouped_along(self, labels: Tensor, dims: Sequence[int]) -> Tensor | None:
        """Unite what lies along some dimensions, if that leaves more than one class (a sum over
        branches, a softmax over them); None if it would make one of all (a mean over channels).

        Returns:
            as `one_along`.
        """
        largest, pairs = self._along(labels, dims)
        if pairs and _n_parts(self.classes.among(labels), pairs) == 1:
            return None
        for pair in pairs:
            self.classes.unite(*pair)
        return largest

    def same_along(self, labels: Tensor, dims: Sequence[int]) -> Tensor | None:
        """The one class there is along some dimensions; None if somewhere there are several.

        Returns:
            as `one_along`.
        """
        largest, pairs = self._along(labels, dims)
        return None if pairs else largest

    def _along(self, labels: Tensor, dims: Sequence[int]) -> tuple[Tensor, list[tuple[int, int]]]:
        """The largest label along some dimensions, and the pairs of classes of it and others."""
        flat = self._flat(labels, dims)
        if flat.shape[-1] == 0:
            return flat.new_zeros(flat.shape[:-1]), []
        largest = flat.amax(-1)
        others = (flat > 0) & (flat != largest[..., None])
        if not others.any():
            return largest, []
        return largest, self._pairs(largest[..., None].expand_as(flat)[others], flat[others])

    @staticmethod
    def _flat(labels: Tensor, dims: Sequence[int]) -> Tensor:
        along = sorted({dim % max(1, labels.ndim) for dim in dims})
        rest = [dim for dim in range(labels.ndim) if dim not in along]
        return labels.permute(*rest, *along).reshape(*(labels.shape[d] for d in rest), -1)


def _n_parts(members: Sequence[int], pairs: Sequence[tuple[int, int]]) -> int:
    """How many classes there are once the pairs are united."""
    part = {member: {member} for member in members}
    for one, other in pairs:
        if part[one] is not part[other]:
            part[one] |= part[other]
            part |= dict.fromkeys(part[other], part[one])
    return len({id(of_member) for of_member in part.values()})


def _repeats(labels: Tensor) -> bool:
    """Whether the same entries lie at several places."""
    return any(s == 0 and n > 1 for s, n in zip(labels.stride(), labels.shape, strict=True))


def _with_several(pairs: Sequence[tuple[int, int]]) -> set[int]:
    """Firsts that are paired with more than one second."""
    partners: dict[int, set[int]] = {}
    for first, second in pairs:
        partners.setdefault(first, set()).add(second)
    return {first for first, seconds in partners.items() if len(seconds) > 1}
