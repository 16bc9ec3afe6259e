"""What depends on all channels at once: gates, attention, norms and means over channels."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from mechanisms import Mechanism, blocks, columns, rows
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeAndExcitation(Mechanism):
    units: ClassVar = {"a": 4, "squeeze": 2}

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.squeeze, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        gate = self.expand(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.end(x * gate.sigmoid())

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a, self.expand)
        columns(kept, self.squeeze, self.last)


class EfficientAttention(Mechanism):
    """A gate of each channel and its neighbours, as they were numbered in the whole network."""

    units: ClassVar = {"a": 6}
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.a, self.neighbours = nn.Conv2d(3, 6, 3, padding=1), nn.Conv1d(1, 1, 3, padding=1)
        self.head(6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        y = self.neighbours(x.mean((2, 3)).view(x.shape[0], 1, -1)).sigmoid()
        return self.end(x * y.view(x.shape[0], -1, 1, 1).expand_as(x))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a)
        columns(kept, self.last)

        def forward(x: Tensor) -> Tensor:
            x = F.relu(self.a(x))
            y = torch.zeros(len(x), 1, 6)
            y[:, 0, kept] = x.mean((2, 3))
            y = self.neighbours(y)[:, 0, kept].sigmoid()
            return self.end(x * y[..., None, None])

        self.forward = forward


class SplitAttention(Mechanism):
    """Two branches, weighed channel for channel by a softmax over them."""

    units: ClassVar = {"one": 4, "squeeze": 2}

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1)
        self.squeeze, self.expand = nn.Linear(4, 2), nn.Linear(2, 8)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend((x, x))

    def attend(self, halves: Sequence[Tensor]) -> Tensor:
        branches = [F.relu(self.one(halves[0])), F.relu(self.other(halves[1]))]
        both = torch.stack(branches, dim=1)
        weights = self.expand(F.relu(self.squeeze(both.sum(1).mean((2, 3)))))
        weights = weights.view(weights.shape[0], 2, -1).softmax(1)
        return self.end((both * weights[..., None, None]).sum(1))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.one, self.other)
        rows([*kept, *(4 + unit for unit in kept)], self.expand)
        columns(kept, self.squeeze, self.last)


class SplitInput(SplitAttention):
    """The same with each half of the channels in a branch of its own: written for all of them."""

    units: ClassVar = {"stem": 4, "one": 4, "squeeze": 2}
    parts = ((0, 1), (2, 3))
    is_program = True

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.one, self.other = nn.Conv2d(2, 4, 1), nn.Conv2d(2, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(torch.split(F.relu(self.stem(x)), 2, 1))

    def cut(self, kept: list[int]) -> None:
        left = [unit for unit in kept if unit < 2]
        rows(kept, self.stem)
        columns(left, self.one)
        columns([unit - 2 for unit in kept if unit >= 2], self.other)
        sizes = [len(left), len(kept) - len(left)]
        self.forward = lambda x: self.attend(torch.split(F.relu(self.stem(x)), sizes, 1))


class SpatialGate(Mechanism):
    """A map over space, made of the mean and the largest of all channels."""

    units: ClassVar = {"a": 4}
    is_program = True
    excluded: ClassVar = {"gate": "its channel is spread over others by aten::mul"}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(2, 1, 3, padding=1)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        of_all = torch.cat([x.mean(1, keepdim=True), x.amax(dim=1, keepdim=True)], 1)
        return self.end(x * self.gate(of_all).sigmoid())

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a)
        columns(kept, self.last)


class LayerNorms(Mechanism):
    """A residual stream with norms over its channels, which the block has in the last place."""

    units: ClassVar = {"stem": 4, "wide": 3}

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm, self.end_norm = nn.LayerNorm(4), nn.LayerNorm(4)
        self.wide, self.narrow = nn.Linear(4, 3), nn.Linear(3, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.narrow(F.gelu(self.wide(y))) * self.scale
        x = x + y.permute(0, 3, 1, 2)
        return self.classifier(self.end_norm(x.mean((2, 3))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.stem, self.depthwise, self.narrow, self.norm, self.end_norm)
        self.depthwise.groups = len(kept)
        self.norm.normalized_shape = self.end_norm.normalized_shape = (len(kept),)
        columns(kept, self.wide, self.classifier)
        self.scale = nn.Parameter(self.scale[kept])


class Normed(Mechanism):
    """A convolution, some norm, a reader."""

    units: ClassVar = {"a": 4}

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, norm_channels(norm), 1), norm
        self.head(norm_channels(norm))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.norm(self.a(x))))

    def cut(self, kept: list[int]) -> None:
        size = self.a.out_channels // self.units["a"]
        rows(blocks(kept, size), self.a, self.norm)
        columns(blocks(kept, size), self.last)


def norm_channels(norm: nn.Module) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else 4


class OneGroupNorm(Normed):
    def __init__(self) -> None:
        super().__init__(nn.GroupNorm(1, 4))


class TurningNorm(nn.LayerNorm):
    """A LayerNorm of images, which turns them itself."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class ImageNorm(Normed):
    """Of images that are as wide as they have channels."""

    def __init__(self) -> None:
        super().__init__(TurningNorm(4))
        self.a = nn.Conv2d(3, 4, 2, stride=2)

    def cut(self, kept: list[int]) -> None:
        super().cut(kept)
        self.norm.normalized_shape = (len(kept),)


class SeveralGroupNorm(Normed):
    """Its units are whole norm groups."""

    units: ClassVar = {"a": 3}

    def __init__(self) -> None:
        super().__init__(nn.GroupNorm(3, 6))

    def cut(self, kept: list[int]) -> None:
        super().cut(kept)
        self.norm.num_groups = len(kept)


class InstanceNorm(Normed):
    def __init__(self) -> None:
        super().__init__(nn.InstanceNorm2d(4, affine=True))

    def cut(self, kept: list[int]) -> None:
        super().cut(kept)
        self.norm.num_features = len(kept)


class ResponseNorm(nn.Module):
    """Each channel's energy beside the mean of all (Woo et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        energy = x.norm(p=2, dim=(2, 3), keepdim=True)
        response = energy / (energy.mean(dim=1, keepdim=True) + 1e-6)
        return x + self.bias.view(1, -1, 1, 1) + self.weight.view(1, -1, 1, 1) * (x * response)


class GlobalResponseNorm(Normed):
    is_program = True

    def __init__(self) -> None:
        super().__init__(ResponseNorm())


class NormByHand(nn.Module):
    """A norm over channels in plain operations, as many networks write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.pow(2).mean(1, keepdim=True)
        normed = centred / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class ManualNorm(Normed):
    is_program = True

    def __init__(self) -> None:
        super().__init__(NormByHand())


class Function(nn.Module):
    """An operation over channels, without a parameter."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)


class UnitLength(Normed):
    is_program = True

    def __init__(self) -> None:
        super().__init__(Function(F.normalize))


def lengths(x: Tensor) -> Tensor:
    of_each = x.norm(dim=1, keepdim=True) + torch.norm(x, 2, 1, True)
    return x / (of_each + torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True) + 1.0)


class Lengths(Normed):
    is_program = True

    def __init__(self) -> None:
        super().__init__(Function(lengths))


def deviations(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, unbiased=False, keepdim=True)
    x = (x - mean) / (variance + 1e-2).sqrt() * (1 + x.std(1, keepdim=True))
    return x * (1 + x.var(dim=1, correction=1)[:, None])


class Deviations(Normed):
    """Some are divided by one less than there are channels: two must stay."""

    parts = ((0, 1), (2, 3))
    is_program = True

    def __init__(self) -> None:
        super().__init__(Function(deviations))


class Extremes(Normed):
    is_program = True

    def __init__(self) -> None:
        super().__init__(Function(lambda x: x / (1 + torch.max(x, 1, keepdim=True)[0].abs())))


OVER_CHANNELS = (
    SqueezeAndExcitation,
    EfficientAttention,
    SplitAttention,
    SplitInput,
    SpatialGate,
    LayerNorms,
    OneGroupNorm,
    ImageNorm,
    SeveralGroupNorm,
    InstanceNorm,
    GlobalResponseNorm,
    ManualNorm,
    UnitLength,
    Lengths,
    Deviations,
    Extremes,
)
