"""Every mechanism that couples channels: found, masked, cut and split as by hand."""

import copy

import brute_force
import pytest
import torch
from mechanisms import MOVES, Mechanism, PaddedShortcut
from mechanisms_of_layers import OF_LAYERS
from mechanisms_over_channels import OVER_CHANNELS
from plain import Plain, images, lively
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.engine.choose import check_split
from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.check import check_group
from shapray.network.cuttable import cuttable
from shapray.network.group import Group
from shapray.network.index_maps import removable
from shapray.network.program import is_program
from shapray.network.replay import Replay
from shapray.network.surgery import prune_model

RELATIVE = 1e-5
KINDS = [*MOVES, *OF_LAYERS, *OVER_CHANNELS]
IMAGES = images(2)


def checked(model: nn.Module) -> tuple[nn.Module, dict[str, Group], dict[str, NetworkSplit]]:
    """The network in the form that is cut, its groups, and the halves of those that are scored."""
    network, groups = cuttable(model, IMAGES[:1])
    folded = fold(network, IMAGES[:1])
    replays = Replay(network, IMAGES[:1]), Replay(folded, IMAGES[:1])
    splits = {}
    for group in groups:
        if group.reason is None:
            assert check_group(network, group, IMAGES, seed=0) is None, group.name
            splits[group.name] = NetworkSplit(folded, group, IMAGES[:1])
            assert splits[group.name].parts is not None, group.name
            assert check_split(splits[group.name], *replays, seed=0) is None, group.name
    return network, {group.name: group for group in groups}, splits


@pytest.mark.parametrize(
    "kind", [*MOVES, *OF_LAYERS, *OVER_CHANNELS], ids=lambda kind: kind.__name__
)
def test_masked_is_what_is_cut_by_hand(kind: type[Mechanism]):
    model = lively(kind())
    network, groups, splits = checked(model)
    assert is_program(network) == model.is_program
    assert {name: groups[name].n_units for name in splits} == model.units
    reasons = {name: group.reason for name, group in groups.items() if group.reason}
    assert reasons.pop("classifier") == "its units are the network's outputs"
    assert reasons == model.excluded

    root, n_units = next(iter(model.units.items()))
    game = splits[root].game(IMAGES, None, "neg_kl_divergence")
    every = torch.arange(len(IMAGES))
    n_compared = 0
    for members in brute_force.subsets(n_units)[1:]:
        kept = members.nonzero()[0].tolist()
        if any(set(part).isdisjoint(kept) for part in model.parts):
            continue
        right = cut_by_hand(model, kept)
        coalition = torch.tensor(members).expand(len(IMAGES), -1)
        for found in (game.masked_outputs(every, coalition), game.outputs(every, coalition)):
            assert (found - right).abs().max() <= RELATIVE * right.abs().max(), kept
        n_compared += 1
    assert n_compared > n_units


def cut_by_hand(model: Mechanism, kept: list[int]) -> Tensor:
    smaller = copy.deepcopy(model)
    with torch.no_grad():
        smaller.cut(kept)
        return smaller(IMAGES.clone())


class Strange(Mechanism):
    """What nobody foresaw happens to the channels of one group, between two that are as any."""

    def __init__(self, operation) -> None:
        super().__init__()
        self.operation = operation
        self.before, self.strange = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 1)
        self.after = nn.Conv2d(4, 5, 1)
        self.head(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.operation(self.strange(F.relu(self.before(x))))
        return self.end(F.relu(self.after(x)))


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (lambda x: torch.fft.fft(x, dim=1).real, "_fft_r2c"),
        (lambda x: x * torch.linalg.svdvals(x.flatten(2))[:, :1, None, None], "_linalg_svd"),
        (lambda x: torch.einsum("bchw,dc->bdhw", x, torch.eye(4)), "bmm"),
        (lambda x: x - x.median(1, keepdim=True).values, "median"),
    ],
)
def test_an_operation_that_is_not_known_excludes_its_group_alone(operation, name):
    _, groups, splits = checked(lively(Strange(operation)))
    assert list(splits) == ["before", "after", "last"]
    assert groups["strange"].reason == f"its channels are mixed by aten::{name}"


class Asking(Plain):
    """Questions about shapes whose answers nobody reads, as traced networks are full of."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[1] == 3, "images of three channels")
        x = F.relu(self.bn1(self.conv1(x)))
        torch._assert(x.shape[2] > 1, "too small")
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(x)), 2)
        getattr(x, "dtype")  # noqa: B009
        x.mean(1)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def test_what_nobody_reads_is_no_obstacle():
    _, groups, splits = checked(lively(Asking()))
    assert list(splits) == ["conv1", "conv2", "fc1"]
    assert groups["conv1"].flat
    assert all(split.parts.entries for split in splits.values())


def test_no_layer_of_a_stream_loses_all_of_its_channels():
    network, groups = cuttable(lively(PaddedShortcut()), IMAGES[:1])
    stem = groups[0]
    assert removable(stem, [1, 0, 3, 2]) == [1, 3, 2]
    with pytest.raises(ValueError, match=r"group 'stem': .* all that some layer of its stem, "):
        prune_model(network, groups, {"stem": [0, 1]})
