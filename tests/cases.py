"""Networks with their groups and images, and what the tests of the engine ask them."""

import functools
import warnings

import torch
from networks import NETWORKS, RESNET18, randomise
from tiny import REPOSITORY
from torch import Tensor, nn

from shapray.config import Images, Model, Transform
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.trace import fold
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.network.check import check_group
from shapray.network.consumers import mask_consumers
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.shapley.game import Game

DATA = REPOSITORY / "jobs" / "data"
TOLERANCE = 1e-4  # of the largest output


def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The digits network with its weights, 6 of its calibration images and their labels."""
    model = build_model(
        Model(factory="shapray.zoo:digits_cnn", weights=str(DATA / "digits_cnn.safetensors"))
    ).requires_grad_(False)
    images = open_images(
        Images(
            source="parquet",
            path=str(DATA / "digits.parquet"),
            where={"split": "calibration"},
            limit=20,
        ),
        Transform(mode="L"),
        "data.calibration",
    )
    assert images.labels is not None
    return model, images.load(0, 6), images.labels[:6]


class Case:
    """A network, its folded graph, images, and the groups to score."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        if name == "digits":
            self.model, self.images, self.labels = digits()
        else:
            self.model = randomise(NETWORKS[name]())
            size = 32 if name == "resnet18" else 8
            # some images are nearly black: other units are active
            scale = torch.tensor([2.0, 0.1, 1.0, 0.01, 3.0])[:, None, None, None]
            self.images = torch.randn(5, 3, size, size) * scale
            self.labels = torch.tensor([0, 1, 2, 1, 0])
        self.example = self.images[:1]
        self.groups = [
            group
            for group in find_groups(self.model, self.example)
            if group.reason is None
            and (name != "resnet18" or group.name in RESNET18)
            and check_group(self.model, group, self.images, seed=0) is None
        ]
        with warnings.catch_warnings():
            # what only has a side effect may be left to the hooks; all else must be traced
            warnings.simplefilter("ignore" if name == "Statement" else "error")
            self.folded = fold(self.model, self.example)

    def group(self, name: str) -> Group:
        return next(group for group in self.groups if group.name == name)

    @functools.cache  # noqa: B019  (cases live as long as the tests)
    def split(self, group: Group, **settings) -> NetworkSplit:
        return NetworkSplit(self.folded, group, self.example, **settings)

    def game(self, group: Group, value: str = "neg_cross_entropy", **settings) -> NetworkGame:
        return self.split(group, **settings).game(self.images, self.labels, value)


@functools.cache
def case(name: str) -> Case:
    return Case(name)


def hook_masked(model: nn.Module, group: Group, images: Tensor, coalitions: Tensor) -> Tensor:
    with torch.inference_mode(), mask_consumers(model, group, coalitions):
        return model(images)


def draw(n_images: int, n_players: int, n_rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images in no order, and coalitions of all sizes, the two ends among them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(n_images, (n_rows,), generator=generator)
    chance = torch.rand(n_rows, 1, generator=generator)
    coalitions = torch.rand(n_rows, n_players, generator=generator) < chance
    coalitions[0], coalitions[1] = False, True
    return images, coalitions


def chains(game: Game, n_chains: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Chains of every image's active players with different lengths, and holes in what is asked."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.arange(len(game.active)).repeat_interleave(n_chains)
    longest = int(game.active.sum(1).max())
    orders = torch.full((len(images), longest), -1)
    chance = min(0.7, 10 / longest)
    wanted = torch.rand(len(images), longest + 1, generator=generator) < chance
    for chain, image in enumerate(images.tolist()):
        players = game.active[image].nonzero()[:, 0]
        players = players[torch.randperm(len(players), generator=generator)]
        orders[chain, : len(players)] = players
        wanted[chain, len(players) + 1 :] = False
    wanted[0] = False  # a chain nobody asks for
    wanted[1, 0] = True
    return images, orders, wanted


def assert_near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape
    assert found.isfinite().all()
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
