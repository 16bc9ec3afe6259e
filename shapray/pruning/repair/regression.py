"""A layer's weights by ridge regression on what it reads.

A row is one image and output position of the layer; its features are the channels read there, tap
by tap. Where there are fewer rows than features the rows are kept, and the system has their number
of unknowns; elsewhere only its sums are: the normal equations. Both give the same weights.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

RIDGE = 1e-3  # of the mean of the diagonal, towards the layer's present weights
MAX_ROWS = 2**18  # of a regression that many fits are made of; of more, some are taken by chance
UNFOLDED_NUMBERS = 2**24  # of patches that are spelled out at once
_TINY = torch.finfo(torch.float32).tiny  # keeps a system solvable where all features are zero

Batches = Callable[[], Iterable[tuple[Tensor, ...]]]
"""What the layer reads and something of the shape of its outputs, batch by batch; can be gone
through again."""


@dataclass(frozen=True)
class Fit:
    """Weights in the layer's own shape, and what its outputs without bias are on these inputs.

    Attributes:
        weight: as the layer's, float32; zero where a channel was not to be read.
        bias: (n_out,) float32; the present one if none may be fitted.
        mean, variance: (n_out,) float64, of weight * input over images and positions.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    variance: Tensor


class Regression:
    """The rows of one layer, or their sums.

    Args:
        layer: a Conv2d or Linear, whose weights the ridge draws to.
        bias: the one that goes with them, (n_out,).
        with_bias: whether a bias may be fitted.
        channels: (n_channels,) bool, those that may be read; equally many of each convolution
            group.
        n_rows: that will be added, about.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        bias: Tensor,
        with_bias: bool,
        n_rows: int,
        channels: Tensor | None = None,
    ) -> None:
        self.layer, self.bias, self.with_bias = layer, bias.double(), with_bias
        self.groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        n_out, device = layer.weight.shape[0], layer.weight.device
        self.n_channels = self.groups * layer.weight.shape[1]
        # (groups, channels read): of all that the layer reads
        self.read = torch.arange(self.n_channels, device=device).view(self.groups, -1)
        if channels is not None:
            self.read = self._of_each(self.read, channels)
        self.taps = layer.weight[0, 0].numel()
        self.now = self._by_feature(layer.weight.detach().double())
        n_features = self.now.shape[1]
        self.keeps_rows = n_rows < n_features
        self.rows: list[Tensor] = []  # each (groups, features, n)
        self.targets: list[Tensor] = []  # each (groups, n, out)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        if not self.keeps_rows:
            self.gram = zeros(self.groups, n_features, n_features)
        self.moment = zeros(self.groups, n_features, n_out // self.groups)
        self.sum_x = zeros(self.groups, n_features, 1)
        self.sum_y = zeros(self.groups, 1, n_out // self.groups)
        self.n = 0

    def add(self, batches: Batches, share: float = 1.0, seed: int = 0) -> None:
        """Take rows in.

        Args:
            batches: inputs, and the outputs that are wanted.
            share: of the rows, by chance.
            seed: of the chance.
        """
        for x, y in self._parts(batches, share, seed):
            if self.keeps_rows:
                self.rows.append(x)
                self.targets.append(y)
            else:
                self.gram += (x @ x.mT).double()
                self.moment += (x @ y).double()
            self.sum_x += x.sum(2, keepdim=True, dtype=torch.float64)
            self.sum_y += y.sum(1, keepdim=True, dtype=torch.float64)
            self.n += x.shape[2]

    def free_below_zero(
        self, fit: Fit, batches: Batches, share: float = 1.0, seed: int = 0
    ) -> None:
        """Other targets for the same rows: where a sum is wanted that is not above zero, what a fit
        puts out is right if it stays below.

        Args:
            fit: the last one.
            batches: inputs, the sum wanted of the layer's output and a rest, and that rest.
            share, seed: as the rows were added with.
        """
        self.targets.clear()
        self.moment.zero_()
        self.sum_y.zero_()
        weight = self._by_feature(fit.weight)
        bias = fit.bias.unflatten(0, (self.groups, 1, -1))
        for x, wanted, rest in self._parts(batches, share, seed):
            found = x.mT @ weight + bias + rest
            y = torch.where(wanted > 0, wanted, found.clamp(max=0)) - rest
            if self.keeps_rows:
                self.targets.append(y)
            else:
                self.moment += (x @ y).double()
            self.sum_y += y.sum(1, keepdim=True, dtype=torch.float64)

    def _parts(self, batches: Batches, share: float, seed: int) -> Iterable[tuple[Tensor, ...]]:
        random = torch.Generator().manual_seed(seed)
        per_position = self.now.shape[1] * self.groups
        for inputs, *outputs in batches():
            n_positions = outputs[0][0].numel() // self.layer.weight.shape[0]
            step = max(1, int(UNFOLDED_NUMBERS / (per_position * n_positions * share)))
            for start in range(0, len(inputs), step):
                x, *some = (part[start : start + step] for part in (inputs, *outputs))
                chosen = None
                if share < 1:
                    drawn = torch.rand(len(x) * n_positions, generator=random) < share
                    chosen = drawn.nonzero()[:, 0].to(x.device)
                yield self._features(x, chosen), *(self._outputs(y, chosen) for y in some)

    def _of_each(self, read: Tensor, channels: Tensor) -> Tensor:
        """Those of (groups, n) channels that stay, (groups, fewer)."""
        return read[channels.to(read.device)[read]].view(self.groups, -1)

    def _places(self, read: Tensor) -> tuple[Tensor, Tensor]:
        """Where a layer's weights for some channels lie: the group of each, and its number there;
        of weights of shape (groups, out, channels of a group, ...)."""
        group = torch.arange(self.groups, device=read.device)[:, None]
        return group, read - group * (self.n_channels // self.groups)

    def _by_feature(self, weight: Tensor) -> Tensor:
        """A layer's weights by what they are multiplied with: (groups, features, out)."""
        group, place = self._places(self.read)
        of_channels = weight.unflatten(0, (self.groups, -1))[group, :, place]
        return of_channels.movedim(2, -1).flatten(1, -2)

    def _features(self, inputs: Tensor, chosen: Tensor | None) -> Tensor:
        """(groups, features, n).

        Args:
            chosen: (n,) int64, positions of all images one after the other; None: all.
        """
        layer = self.layer
        if isinstance(layer, nn.Linear):
            rows = inputs[..., self.read.flatten()].flatten(0, -2)
            return (rows if chosen is None else rows[chosen]).T[None]
        if self.read.numel() < self.n_channels:
            inputs = inputs[:, self.read.flatten()]
        padded = _padded(layer, inputs)
        if chosen is None:
            patches = nn.functional.unfold(
                padded, layer.kernel_size, layer.dilation, 0, layer.stride
            )  # (images, channels * taps, positions)
            return patches.unflatten(1, (self.groups, -1)).movedim(0, 2).flatten(2)
        patches = _patches(layer, padded, chosen)  # (n, height, width, channels)
        features = patches.permute(3, 1, 2, 0).flatten(0, 2)
        return features.unflatten(0, (self.groups, -1))

    def _outputs(self, targets: Tensor, chosen: Tensor | None) -> Tensor:
        """(groups, n, outputs of a group)."""
        if isinstance(self.layer, nn.Conv2d):
            flat = targets.movedim(1, -1).flatten(0, -2)
        else:
            flat = targets.flatten(0, -2)
        rows = flat if chosen is None else flat[chosen]
        return rows.T.unflatten(0, (self.groups, -1)).mT

    def solve(self, channels: Tensor | None = None, ridge: float = RIDGE) -> Fit:
        """The weights that come nearest to the targets, drawn to the present ones by the ridge.

        Args:
            channels: (n_channels,) bool, those that may be read, of those that were; equally many
                of each convolution group.
        """
        group = torch.arange(self.groups, device=self.read.device)[:, None]
        read, here = self.read, torch.arange(self.now.shape[1], device=self.read.device)[None]
        if channels is not None:
            stay = channels.to(read.device)[read]
            here = here.expand(self.groups, -1)[stay.repeat_interleave(self.taps, 1)]
            read, here = self._of_each(read, channels), here.view(self.groups, -1)
        now, mean_x = self.now[group, here], self.sum_x[group, here] / self.n
        mean_y = self.sum_y / self.n
        centre_x = mean_x if self.with_bias else torch.zeros_like(mean_x)
        given = mean_y if self.with_bias else self.bias.unflatten(0, (self.groups, 1, -1))
        if self.keeps_rows:
            rows = torch.cat(self.rows, 2)[group, here].double() - centre_x
            left = torch.cat(self.targets, 1).double() - given - rows.mT @ now
            penalty = self._penalty(
                rows.square().sum(2) + self.n * centre_x.square()[:, :, 0], ridge
            )
            found = now + rows @ torch.linalg.solve(_raised(rows.mT @ rows, penalty), left)
            variance = (found.mT @ (rows + centre_x - mean_x)).square().mean(2)
        else:
            gram = self.gram[group[..., None], here[:, :, None], here[:, None, :]]
            centred = gram - self.n * mean_x @ mean_x.mT
            system = centred if self.with_bias else gram
            moment = self.moment[group, here] - self.n * mean_x @ given
            penalty = self._penalty(gram.diagonal(dim1=1, dim2=2), ridge)
            found = now + torch.linalg.solve(_raised(system, penalty), moment - system @ now)
            variance = ((centred @ found) * found).sum(1) / self.n
        mean = (mean_x.mT @ found).flatten()
        weight = torch.zeros_like(self.layer.weight)
        group, place = self._places(read)
        of_channels = found.unflatten(1, (read.shape[1], *weight.shape[2:]))
        by_group = weight.unflatten(0, (self.groups, -1))
        by_group[group, :, place] = of_channels.movedim(-1, 2).to(weight)
        bias = mean_y.flatten() - mean if self.with_bias else self.bias
        return Fit(weight, bias.float(), mean, variance.flatten().clamp(min=0))

    def system(self) -> Tensor:
        """(groups, features, features), without the ridge; perhaps the regression's own."""
        if not self.with_bias:
            return self.gram
        mean = self.sum_x / self.n
        return self.gram - self.n * mean @ mean.mT

    def _penalty(self, diagonal: Tensor, ridge: float) -> Tensor:
        """(groups,), from the features' sums of squares, (groups, features)."""
        return ridge * diagonal.mean(1).clamp(min=_TINY)


def _raised(system: Tensor, penalty: Tensor) -> Tensor:
    """A square matrix per group with a number added to its diagonal."""
    raised = system.clone()
    raised.diagonal(dim1=1, dim2=2).add_(penalty[:, None])
    return raised


def _padded(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    """As the layer pads: by numbers or words ("same"), with zeros or by reflection, repetition or
    wrapping around."""
    if layer.padding_mode != "zeros":
        sides = layer._reversed_padding_repeated_twice
        return nn.functional.pad(inputs, sides, mode=layer.padding_mode)
    if isinstance(layer.padding, str):
        return nn.functional.pad(inputs, layer._reversed_padding_repeated_twice)
    down, right = _two(layer.padding)  # what the layer reads, also if it was set later
    return nn.functional.pad(inputs, (right, right, down, down))


def _patches(layer: nn.Conv2d, padded: Tensor, chosen: Tensor) -> Tensor:
    """What a convolution reads at some positions: (n, kernel height, kernel width, channels).

    Args:
        chosen: (n,) int64, positions of its output, of all images one after the other.
    """
    taps = []  # per dimension: how many positions there are, and what is read for each
    settings = zip(_two(layer.stride), _two(layer.dilation), _two(layer.kernel_size))
    for length, (stride, gap, size) in zip(padded.shape[2:], settings):
        n = (length - gap * (size - 1) - 1) // stride + 1
        at = torch.arange(n)[:, None] * stride + torch.arange(size) * gap
        taps.append(at.to(padded.device))
    rows, columns = taps
    n_columns = len(columns)
    n_positions = len(rows) * n_columns
    image, place = chosen // n_positions, chosen % n_positions
    return padded.movedim(1, -1).contiguous()[
        image[:, None, None],
        rows[place // n_columns][:, :, None],
        columns[place % n_columns][:, None, :],
    ]


def _two(setting: int | tuple[int, ...]) -> tuple[int, int]:
    """Of height and width; a layer whose setting was changed may have one number for both."""
    return (setting, setting) if isinstance(setting, int) else (setting[0], setting[1])
