"""Which layers the summed way is open to, and that it comes to what the masked network does."""

import brute_force
import numpy as np
import pytest
import torch
from cases import assert_near, chains, draw, hook_masked
from mechanisms_over_channels import GlobalResponseNorm, OneGroupNorm
from networks import randomise
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.sums import table_bytes
from shapray.engine.tail import are_maps
from shapray.engine.trace import fold
from shapray.network.find import find_groups
from shapray.network.group import Channels, Group
from shapray.network.program import program
from shapray.shapley.estimators import Settings, estimate
from shapray.shapley.game import Game

N_IMAGES = 5


class Reader(nn.Module):
    """A layer that reads what `first` puts out, in some order, beside a shortcut."""

    def __init__(self, layer: nn.Module, order: tuple[int, ...] = tuple(range(8))) -> None:
        super().__init__()
        self.first, self.layer = nn.Conv2d(3, 8, 3, padding=1), layer
        self.short, self.head = nn.Conv2d(3, 12, 1), nn.Linear(12, 5)
        self.order = list(order)

    def forward(self, x):
        y = self.layer(F.relu(self.first(x))[:, self.order])
        return self.head((self.short(x) + y).relu().mean((2, 3)))

    def group(self, unit_of_channel: tuple[int, ...] = ()) -> Group:
        """By hand: of which units the channels that the layer reads are."""
        units = unit_of_channel or tuple(self.order)
        modules = "first", "layer"
        readers = (Channels("layer", units),)
        return Group("first", max(units) + 1, "conv", modules, readers, True, None)


class OverRows(nn.Module):
    """Linear layers along the last of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 9), nn.Linear(9, 6)
        self.norm, self.last, self.head = nn.LayerNorm(6), nn.Conv2d(6, 7, 1), nn.Linear(7, 5)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        return self.head(self.last(x.transpose(1, 2).unflatten(2, (4, 4))).relu().mean((2, 3)))


class OverMaps(OverRows):
    """The same along the last of four."""

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        return self.head(self.last(x.permute(0, 3, 1, 2)).relu().mean((2, 3)))


class Derived(nn.Conv2d):
    """Does what its parent does."""


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.abs())


class OwnInside(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight * 2, bias)


def played(model: nn.Module, group: Group | str, precision: str = "float32") -> NetworkGame:
    torch.manual_seed(0)
    randomise(model)
    images = torch.randn(N_IMAGES, 3, 8, 8)
    if isinstance(group, str):
        group = next(g for g in find_groups(model, images[:1]) if g.name == group)
    split = NetworkSplit(fold(model, images[:1]), group, images[:1], precision=precision)
    return split.game(images, torch.tensor([0, 1, 2, 1, 0]), "target_logit")


def grouped(n_groups: int = 4, order: tuple[int, ...] = tuple(range(8)), **settings) -> Reader:
    torch.manual_seed(1)
    return Reader(nn.Conv2d(8, 12, 3, padding=1, groups=n_groups, **settings), order)


SHUFFLED = (0, 4, 1, 5, 2, 6, 3, 7)  # as from one convolution in groups to the next
OPEN = {
    "in groups": lambda: (grouped(), grouped().group()),
    "in groups, shuffled": lambda: (grouped(order=SHUFFLED), Reader.group(grouped(order=SHUFFLED))),
    "several channels in a block": lambda: (grouped(2), grouped(2).group((0, 1, 1, 0, 3, 2, 2, 3))),
    "a channel of nobody in each block": lambda: (
        grouped(2),
        grouped(2).group((-1, 0, 1, 2, 3, 4, 5, -1)),
    ),
    "over rows": lambda: (OverRows(), "up"),
    "over maps": lambda: (OverMaps(), "up"),
    "derived": lambda: (Reader(Derived(8, 12, 3, padding=1)), "first"),
}
CLOSED = {
    "a unit in two blocks": lambda: (grouped(2), grouped(2).group((0, 1, 2, 3, 0, 1, 2, 3))),
    "unequal blocks": lambda: (grouped(2), grouped(2).group((-1, 0, 1, 2, 3, 4, 5, 6))),
    "padded otherwise": lambda: (
        grouped(padding_mode="reflect"),
        grouped(padding_mode="reflect").group(),
    ),
    "its own forward": lambda: (Reader(Own(8, 12, 3, padding=1)), "first"),
    "its own inside": lambda: (Reader(OwnInside(8, 12, 3, padding=1)), "first"),
}


@pytest.mark.parametrize("name", [*OPEN, *CLOSED])
def test_outputs_are_those_of_the_masked_network(name):
    model, group = (OPEN | CLOSED)[name]()
    game = played(model, group)
    group = game.split.group
    assert (game.sums is not None) == (name in OPEN)
    images, coalitions = draw(N_IMAGES, group.n_units, 40)
    expected = hook_masked(model, group, game.images[images], coalitions)
    assert_near(game.masked_outputs(images, coalitions), expected, 1e-5)
    assert_near(game.outputs(images, coalitions), expected, 1e-5)
    if game.sums is not None:
        multiplied = game.sums.coalitions(images, coalitions, 7, expected.shape[1])
        assert_near(multiplied, expected, 1e-5)
    asked = chains(game, 3)
    along = Game.along(game, *asked)
    for rows in (game.rows, 3):
        game.rows = rows
        assert_near(game.along(*asked), along, 1e-5)
    players = torch.randperm(group.n_units, generator=torch.Generator().manual_seed(0))
    expected = Game.subset_values(game, 2, players)
    assert_near(game.subset_values(2, players), expected, 1e-5)


@pytest.mark.parametrize("name", OPEN)
def test_exact_values_are_those_of_the_definition(name):
    model, group = OPEN[name]()
    game = played(model, group)
    group = game.split.group
    (found, *_) = estimate(game, Settings("exact"), range(N_IMAGES))
    kept = torch.from_numpy(brute_force.subsets(group.n_units))
    outputs = hook_masked(model, group, game.images[:1].expand(len(kept), -1, -1, -1), kept)
    expected = brute_force.shapley(outputs[:, 0].double().numpy())
    np.testing.assert_allclose(found.shapley_value, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["in groups, shuffled", "over maps"])
def test_bfloat16_is_near_float32(name):
    model, group = OPEN[name]()
    expected, game = played(model, group), played(model, group, "bfloat16")
    asked = chains(game, 2)
    assert_near(game.along(*asked), expected.along(*asked), 0.05)


def test_a_unit_takes_room_for_its_own_block_alone():
    in_one, in_four = (
        played(model, model.group()).split.parts for model in (grouped(1), grouped(4))
    )
    n_outputs = 12 * 8 * 8
    assert table_bytes(in_one, 8) == 4 * (8 + 1) * n_outputs
    assert table_bytes(in_four, 8) == 4 * (8 // 4 + 1) * n_outputs


def test_products_are_taken_where_a_layer_has_more_multiply_adds():
    """A kernel of 3 x 3 has nine times as many; a linear layer has as many."""
    assert played(grouped(), grouped().group()).sums.multiplied
    assert not played(OverMaps(), "up").sums.multiplied
    # Chains would be rounded otherwise than the empty and the full coalition.
    assert played(OverMaps(), "up", "bfloat16").sums is None
    assert played(grouped(), grouped().group(), "bfloat16").sums is not None


def test_norms_over_channels_behind_a_group_leave_the_masked_way():
    """What they put out is not linear in the mask."""
    for model in (OneGroupNorm(), program(GlobalResponseNorm(), torch.zeros(1, 3, 8, 8))):
        game = played(model, "a")
        assert game.split.group.statistics
        assert game.split.parts is not None
        assert game.sums is None


def test_channels_first_is_told_from_channels_last():
    """By what reads a value, masked or with others added to it."""
    maps, rows = (played(model, "up").split for model in (OverMaps(), OverRows()))
    assert not any(are_maps(maps.masked)[:2])
    assert not any(are_maps(rows.masked)[:2])
    of_images = played(grouped(), grouped().group()).split
    assert all(are_maps(of_images.masked)[:2])
