"""What couples channels in networks, one tiny network each, with its cut written by hand.

The cuts are slices of weights in plain PyTorch, without a line of the package: what the package
masks, cuts and splits is compared with them.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mechanism(nn.Module):
    """A network with images of 3 channels, of which the units of one group are cut.

    Attributes:
        units: of all scored groups, by name; the first group's are cut.
        parts: of its units, of each of which one must stay: PyTorch has no layers of no channels.
        excluded: the groups that are not scored but for the last layer's: a part of the reason.
        is_program: whether its forward is written for all channels.
    """

    units: Mapping[str, int] = MappingProxyType({})
    parts: Sequence[Sequence[int]] = ()
    excluded: Mapping[str, str] = MappingProxyType({})
    is_program = False

    def head(self, n_channels: int) -> None:
        self.last, self.classifier = nn.Conv2d(n_channels, 3, 1), nn.Linear(3, 3)
        self.units = self.units | {"last": 3}

    def end(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(x).relu().mean((2, 3)))

    def cut(self, kept: list[int]) -> None:
        """Leave this network some units, in place."""
        raise NotImplementedError


def rows(kept: list[int], *layers: nn.Module) -> None:
    """Leave layers some of what they put out; norms, of what they have."""
    for layer in layers:
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(layer, name, None)
            if tensor is not None:
                setattr(layer, name, nn.Parameter(tensor[kept], requires_grad=False))


def columns(kept: list[int], *layers: nn.Module) -> None:
    """Leave layers some of what they read."""
    for layer in layers:
        layer.weight = nn.Parameter(layer.weight[:, kept])


def blocks(kept: list[int], size: int) -> list[int]:
    """Channels of units that have several each, one after the other."""
    return [unit * size + i for unit in kept for i in range(size)]


# ---- streams -------------------------------------------------------------------------------------


class PaddedShortcut(Mechanism):
    """A residual stream that gets wider: the shortcut is filled up with zeros on both sides.

    Its units 0 and 1 go through both stages, 2 and 3 begin in the second: in whose layers 2 is the
    first channel, 3 the last.
    """

    units: ClassVar = {"stem": 4, "first": 3, "second": 3}
    parts = ((0, 1),)
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.back, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.wide, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head(4)

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.back(F.relu(self.first(x))))
        return x[:, :, ::2, ::2], self.norm(self.wide(F.relu(self.second(x))))

    def forward(self, x: Tensor) -> Tensor:
        shortcut, y = self.before(x)
        return self.end(F.relu(y + F.pad(shortcut, (0, 0, 0, 0, 1, 1))))

    def cut(self, kept: list[int]) -> None:
        stream = [unit for unit in kept if unit < 2]
        rows(stream, self.stem, self.back)
        columns(stream, self.first, self.second)
        wide = [place for place, unit in enumerate((2, 0, 1, 3)) if unit in kept]
        rows(wide, self.wide, self.norm)
        columns(wide, self.last)

        def forward(x: Tensor) -> Tensor:
            shortcut, y = self.before(x)
            sides = (int(2 in kept), int(3 in kept))
            return self.end(F.relu(y + F.pad(shortcut, (0, 0, 0, 0, *sides))))

        self.forward = forward


class Concatenation(Mechanism):
    units: ClassVar = {"first": 3, "second": 4}

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(10)
        self.head(10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        return self.end(F.relu(self.norm(torch.cat([a, b, a], 1))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.first)
        left = [*kept, *range(3, 7), *(7 + unit for unit in kept)]
        rows(left, self.norm)
        columns(left, self.last)


class Flatten(Mechanism):
    units: ClassVar = {"a": 4, "hidden": 5}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.hidden, self.classifier = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_max_pool2d(F.relu(self.a(x)), 2).flatten(1)
        return self.classifier(F.relu(self.hidden(x)))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a)
        columns(blocks(kept, 4), self.hidden)


class CalledTwice(Mechanism):
    """One convolution in two places: its inputs and outputs go together."""

    units: ClassVar = {"stem": 4}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.again(F.relu(self.again(F.relu(self.stem(x)))))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.stem, self.again)
        columns(kept, self.again, self.last)


# ---- channels that are moved ---------------------------------------------------------------------


class Shuffle(Mechanism):
    """Half of the channels passes, the other half is convolved; then they take turns."""

    units: ClassVar = {"stem": 4, "branch": 2}
    parts = ((2, 3),)
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        passing, other = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat([passing, self.branch(other)], 1)
        b, c, h, w = x.shape
        return self.end(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))

    def cut(self, kept: list[int]) -> None:
        passing = [unit for unit in kept if unit < 2]
        rows(kept, self.stem)
        columns([unit - 2 for unit in kept if unit >= 2], self.branch)
        columns([2 * unit for unit in passing] + [1, 3], self.last)

        def forward(x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            n = len(passing)
            return self.end(torch.cat([x[:, :n], self.branch(x[:, n:])], 1))

        self.forward = forward


class SizeOfAnother(Mechanism):
    """What is reshaped has as many channels as another stream, which says so."""

    units: ClassVar = {"stem": 4, "other": 4}
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        b, c, h, w = x.shape
        return self.end(F.relu(self.other(x)).view(b, c, h * w).unsqueeze(3))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.stem)
        columns(kept, self.other)
        self.forward = lambda x: self.end(F.relu(self.other(F.relu(self.stem(x)))))


class InParts(nn.Module):
    """A convolution in groups of unequal size, which PyTorch has not: one for each.

    Args:
        whole: in groups of one size.
        read, put_out: channels of it that are left.
    """

    def __init__(self, whole: nn.Conv2d, read: list[int], put_out: list[int]) -> None:
        super().__init__()
        self.parts, self.padding = nn.ParameterList(), whole.padding
        self.places: list[list[int]] = []
        n_in, n_out = (n // whole.groups for n in (whole.in_channels, whole.out_channels))
        for group in range(whole.groups):
            own = [i for i in read if i // n_in == group]
            of_group = [i for i in put_out if i // n_out == group]
            self.places.append([read.index(i) for i in own])
            weight = whole.weight[of_group][:, [i % n_in for i in own]]
            self.parts.extend((weight, whole.bias[of_group]))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for places, weight, bias in zip(self.places, self.parts[::2], self.parts[1::2]):
            if not places:
                found.append(bias.view(1, -1, 1, 1).expand(len(x), -1, *x.shape[2:]))
            elif len(bias):
                found.append(F.conv2d(x[:, places], weight, bias, padding=self.padding))
        return torch.cat(found, 1)


class BeforeGroups(Mechanism):
    """What a convolution in groups reads: an equal part of its units for each."""

    units: ClassVar = {"a": 6, "b": 9}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.head(9)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.b(F.relu(self.norm(self.a(x))))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a, self.norm)
        self.b = InParts(self.b, kept, list(range(9)))


class BetweenGroups(Mechanism):
    """Two convolutions in groups and a shuffle: equally many of what one puts out and the other
    reads together."""

    units: ClassVar = {"a": 8, "stem": 8, "b": 4}
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 4, 1, groups=2)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(F.relu(self.stem(x)))))
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.end(F.relu(self.b(x)))

    def cut(self, kept: list[int]) -> None:
        shuffled = [unit for pair in zip(range(4), range(4, 8)) for unit in pair]
        now = [unit for unit in shuffled if unit in kept]
        self.a = InParts(self.a, list(range(8)), kept)
        rows(kept, self.norm)
        self.b = InParts(self.b, [shuffled.index(unit) for unit in now], list(range(4)))
        order = [kept.index(unit) for unit in now]

        def forward(x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.a(F.relu(self.stem(x)))))
            return self.end(F.relu(self.b(x[:, order])))

        self.forward = forward


class ShuffledBlocks(Mechanism):
    """A shuffle that still runs with equally many units of each block, in the wrong order."""

    units: ClassVar = {"a": 8, "stem": 8}
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.head(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(F.relu(self.stem(x))))
        b, c, h, w = x.shape
        return self.end(x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w))

    def cut(self, kept: list[int]) -> None:
        shuffled = [unit for pair in zip(range(4), range(4, 8)) for unit in pair]
        self.a = InParts(self.a, list(range(8)), kept)
        columns([shuffled.index(unit) for unit in kept], self.last)
        self.forward = lambda x: self.end(F.relu(self.a(F.relu(self.stem(x)))))


class GroupsOfTwoRoots(Mechanism):
    """A convolution in groups that reads two groups of units, each in one of its own: it loses
    whole groups."""

    units: ClassVar = {"a": 3}
    excluded: ClassVar = {"other": "it has a single unit"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.other = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 2, 1)
        self.b = nn.Conv2d(8, 4, 1, groups=4)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.cat([self.a(x), self.other(x)], 1))
        return self.end(F.relu(self.b(x)))

    def cut(self, kept: list[int]) -> None:
        rows(blocks(kept, 2), self.a)
        rows([*kept, 3], self.b)
        self.b.groups = len(kept) + 1
        columns([*kept, 3], self.last)


class DepthwiseMultiplier(Mechanism):
    units: ClassVar = {"a": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(8)
        self.head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.norm(self.b(F.relu(self.a(x))))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a)
        rows(blocks(kept, 2), self.b, self.norm)
        self.b.groups = len(kept)
        columns(blocks(kept, 2), self.last)


class PixelShuffle(Mechanism):
    units: ClassVar = {"a": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 12, 1)
        self.head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(F.pixel_shuffle(self.a(x), 2)))

    def cut(self, kept: list[int]) -> None:
        rows(blocks(kept, 4), self.a)
        columns(kept, self.last)


class Glu(Mechanism):
    """A channel and its gate, which lie half of the channels apart."""

    units: ClassVar = {"a": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.glu(self.a(x), 1))

    def cut(self, kept: list[int]) -> None:
        rows([*kept, *(4 + unit for unit in kept)], self.a)
        columns(kept, self.last)


MOVES = (
    PaddedShortcut,
    Concatenation,
    Flatten,
    CalledTwice,
    Shuffle,
    SizeOfAnother,
    BeforeGroups,
    BetweenGroups,
    ShuffledBlocks,
    GroupsOfTwoRoots,
    DepthwiseMultiplier,
    PixelShuffle,
    Glu,
)
