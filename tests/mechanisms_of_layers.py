"""Layers of every kind, and parameters that are none's."""

from typing import ClassVar

import torch
from mechanisms import Mechanism, columns, rows
from torch import Tensor, nn
from torch.nn import functional as F


class OwnConvolution(nn.Conv2d):
    """A convolution with padding of its own, as those of networks that were made elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Derived(Mechanism):
    units: ClassVar = {"a": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a = OwnConvolution(3, 4, 2)
        self.head(4)
        self.last = OwnConvolution(4, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.a(x)))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a)
        columns(kept, self.last)


class Transposed(Mechanism):
    """Convolutions whose weights have what they read first."""

    units: ClassVar = {"up": 4, "again": 3}

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(3, 4, 2, stride=2), nn.BatchNorm2d(4)
        self.again = nn.ConvTranspose2d(4, 3, 3, padding=1)
        self.head(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(F.relu(self.again(F.relu(self.norm(self.up(x))))))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.norm)
        columns(kept, self.up)
        self.up.bias = nn.Parameter(self.up.bias[kept])
        self.again.weight = nn.Parameter(self.again.weight[kept])


class Sequences(Mechanism):
    """Images row after row."""

    units: ClassVar = {"a": 4, "b": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.b = nn.Conv1d(4, 3, 3, stride=2, padding=1)
        self.head(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x.flatten(2))))
        return self.end(F.relu(self.b(x)).unsqueeze(-1))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a, self.norm)
        columns(kept, self.b)


class Volumes(Mechanism):
    """Images in two halves, one behind the other."""

    units: ClassVar = {"a": 4, "b": 3}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4)
        self.b = nn.Conv3d(4, 3, 1)
        self.head(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.a(x.unflatten(2, (2, -1)))))
        return self.end(F.max_pool3d(F.relu(self.b(x)), 2).flatten(2, 3))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a, self.norm)
        columns(kept, self.b)


class Slopes(Mechanism):
    units: ClassVar = {"a": 4}

    def __init__(self) -> None:
        super().__init__()
        self.a, self.slopes = nn.Conv2d(3, 4, 1), nn.PReLU(4)
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.slopes(self.a(x)))

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.a, self.slopes)
        columns(kept, self.last)


class BareParameters(Mechanism):
    """Layer scale, a shift, and a buffer: each with the channels in another place."""

    units: ClassVar = {"stem": 4, "a": 3}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(3, 4, 1)
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))
        self.shift = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.register_buffer("scale", torch.tensor([0.5, 1.0, 1.5, 2.0]))
        self.head(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) * self.scale[None, :, None, None]
        return self.end(x + self.gamma * self.b(F.relu(self.a(x))) + self.shift)

    def cut(self, kept: list[int]) -> None:
        rows(kept, self.stem, self.b)
        columns(kept, self.a, self.last)
        self.gamma = nn.Parameter(self.gamma[kept])
        self.shift = nn.Parameter(self.shift[:, kept])
        self.scale = self.scale[kept]


OF_LAYERS = (
    Derived,
    Transposed,
    Sequences,
    Volumes,
    Slopes,
    BareParameters,
)
