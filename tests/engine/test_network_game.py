"""Networks as games: what the split network computes is what the masked network computes."""

import functools
import warnings
from pathlib import Path

import brute_force
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.config import Images, Model, Score, Transform
from shapray.engine.fold import fold
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.network.check import check_group
from shapray.network.consumers import mask_consumers
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.network.surgery import prune_model
from shapray.shapley.estimators import estimate
from shapray.shapley.game import Game
from shapray.shapley.values import NAMES

DATA = Path(__file__).parents[2] / "jobs" / "data"
TOLERANCE = 1e-4  # of the largest output


# --- networks -------------------------------------------------------------------------------------


class Vgg(nn.Module):
    """In-place activations, pooling, a flatten with several features per unit, hidden neurons."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(inplace=True),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 7, 3, padding=1, stride=2, bias=False),
            nn.BatchNorm2d(7),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Sequential(
            nn.Linear(7 * 2 * 2, 10), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(10, 5)
        )

    def forward(self, x):
        x = self.features(x)
        return self.classifier(torch.flatten(x, 1))


class Reshaping(Vgg):
    """The batch size taken from the data, the other size from what is left."""

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.reshape(x.size(0), -1))


class Viewing(Vgg):
    """A view of contiguous memory, which a convolution in channels-last layout does not return."""

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.size(0), -1))


class Residual(nn.Module):
    """Two basic blocks: an identity shortcut and a 1x1 convolution as one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.block1 = torchvision.models.resnet.BasicBlock(6, 6)
        down = nn.Sequential(nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8))
        self.block2 = torchvision.models.resnet.BasicBlock(6, 8, stride=2, downsample=down)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = self.block2(self.block1(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Concat(nn.Module):
    """A dense block, whose layers are read by several consumers, and two parallel branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(11, 4, 3, padding=1)
        self.branch1 = nn.Conv2d(15, 5, 1)
        self.branch2 = nn.Conv2d(15, 4, 3, padding="same", padding_mode="reflect")
        self.mix = nn.Conv2d(9, 6, 3)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        a = torch.relu(self.conv1(x))
        b = torch.relu(self.conv2(a))
        c = torch.relu(self.conv3(torch.cat([a, b], 1)))
        x = torch.cat([a, b, c], 1)
        x = torch.cat([self.branch1(x).relu(), torch.relu(self.branch2(x))], dim=1)
        return self.head(self.mix(x).relu().mean((2, 3)))


class Separable(nn.Module):
    """Depthwise-separable convolutions with ReLU6 and Hardswish, and an inverted residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.ReLU6(True))
        self.expand = nn.Sequential(nn.Conv2d(6, 9, 1), nn.BatchNorm2d(9), nn.Hardswish(True))
        self.depth = nn.Sequential(
            nn.Conv2d(9, 9, 3, 1, 1, groups=9), nn.BatchNorm2d(9), nn.ReLU6(inplace=True)
        )
        self.project = nn.Sequential(nn.Conv2d(9, 6, 1), nn.BatchNorm2d(6))
        self.last = nn.Conv2d(6, 7, 1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.depth(self.expand(x)))
        return self.head(F.adaptive_avg_pool2d(F.relu6(self.last(x)), 1)[:, :, 0, 0])


class Functional(nn.Module):
    """Everything as functions, additions in place, activations in place on named values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv4 = nn.Conv2d(6, 8, 3, stride=2)
        self.fc1, self.fc2 = nn.Linear(8, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = F.relu(self.conv1(x), inplace=True)
        y = F.relu(self.conv2(x))
        y = self.conv3(y)
        y += x
        y = F.relu(y, inplace=True)
        y = F.relu(self.conv4(y)).amax((2, 3))
        return self.fc2(F.gelu(self.fc1(y)))


class SqueezeExcite(nn.Module):
    """A group whose second consumer reads what the first has gated: deep."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.conv2 = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.head(torch.relu(self.conv2(x * gate)).mean((2, 3)))


class ChannelsLastMlp(nn.Module):
    """A block of ConvNeXt: linear layers that read (n, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, stride=2)
        self.depth = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.LayerNorm(6)
        self.up, self.down = nn.Linear(6, 11), nn.Linear(11, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        y = self.down(F.relu(self.up(y)))
        return self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))


class Gated(nn.Module):
    """The input of one consumer is multiplied in place before the next reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)
        self.conv3, self.head = nn.Conv2d(6, 4, 3, padding=1), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.conv1(x))
        a = self.conv2(x)
        x *= 3.0
        return self.head((a + self.conv3(x)).relu().mean((2, 3)))


class Statement(nn.Module):
    """Activations in place whose result nobody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 7, 3, padding=1)
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = self.conv1(x)
        x.relu_()
        x = self.conv2(x)
        torch.relu_(x)
        return self.head(x.mean((2, 3)))


class ThreeClasses(nn.Module):
    """Parameters of its own with three entries, like the batch that shapes are traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1))
        self.bias = nn.Parameter(torch.tensor([1.0, -1.0, 0.0]))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        x = self.conv2(torch.relu(self.conv1(x * self.gain)))
        return self.head((x * self.gain).relu().mean((2, 3))) * self.bias + self.bias


def resnet18() -> nn.Module:
    return torchvision.models.resnet18(num_classes=20)


NETWORKS = {
    f.__name__: f
    for f in (
        Vgg,
        Reshaping,
        Viewing,
        Residual,
        Concat,
        Separable,
        Functional,
        SqueezeExcite,
        ChannelsLastMlp,
        Gated,
        Statement,
        ThreeClasses,
        resnet18,
    )
} | {"digits": None}
# the others of its groups are like these
RESNET18 = ("layer1.0.conv1", "layer3.0.conv1", "layer4.0.conv2")


def randomise(model: nn.Module) -> nn.Module:
    """A BatchNorm that does something; in every layer the first channels are never positive."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.constant_(module.bias[:2], -20.0)
        elif isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.3)
    return model.eval().requires_grad_(False)


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


@pytest.fixture(params=NETWORKS)
def network(request) -> Case:
    return case(request.param)


# --- which groups ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flat", "deep"),
    [
        ("Vgg", {"features.0", "features.3", "features.7", "classifier.0"}, set()),
        ("Residual", {"block1.conv1", "block2.conv1"}, {"stem"}),
        ("Concat", {"branch1", "branch2", "mix", "conv3"}, {"conv1", "conv2"}),
        ("Separable", {"expand.0", "last"}, {"stem.0"}),
        ("Functional", {"conv2", "conv4", "fc1"}, {"conv1"}),
        ("SqueezeExcite", {"squeeze", "conv2"}, {"conv1"}),
        ("ChannelsLastMlp", {"up"}, set()),
        ("Gated", {"conv1"}, set()),
        ("Statement", {"conv1", "conv2"}, set()),
        ("ThreeClasses", {"conv1"}, set()),
        ("digits", {"conv1", "conv2", "conv3", "fc1"}, set()),
    ],
)
def test_the_groups_of_these_tests_are_there(name, flat, deep):
    """All that follows runs over a network's groups: here is which."""
    of_kind = {
        kind: {g.name for g in case(name).groups if g.flat == kind} for kind in (True, False)
    }
    assert flat <= of_kind[True]
    assert deep <= of_kind[False]


# --- the same outputs -----------------------------------------------------------------------------


def test_outputs_are_those_of_the_masked_network(network):
    for group in network.groups:
        images, coalitions = draw(len(network.images), group.n_units, 60)
        expected = hook_masked(network.model, group, network.images[images], coalitions)
        game = network.game(group)
        assert_near(game.outputs(images, coalitions), expected)
        assert_near(game.masked_outputs(images, coalitions), expected)
        # nothing that is kept between calls was overwritten
        assert torch.equal(game.outputs(images, coalitions), game.outputs(images, coalitions))
        assert_near(game.outputs(images, coalitions), expected)


def test_outputs_in_any_order_and_in_any_number_of_parts(network):
    for group in network.groups[:3]:
        images, coalitions = draw(len(network.images), group.n_units, 23)
        images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(1))]
        images[images == 1] = 0  # not all of them
        game = network.game(group)
        expected = game.masked_outputs(images, coalitions)
        for rows in (1, 3, 16):
            game.rows = rows
            assert_near(game.outputs(images, coalitions), expected)
        if game.sums is not None:
            game.sums.images_at_once = 1
            assert_near(game.outputs(images, coalitions), expected)
        assert game.outputs(images[:0], coalitions[:0]).shape == (0, expected.shape[1])


def test_outputs_are_those_of_the_pruned_network(network):
    for group in network.groups:
        every = torch.arange(len(network.images))
        _, coalitions = draw(1, group.n_units, 6)
        for kept in coalitions[coalitions.any(1)]:
            removed = (~kept).nonzero()[:, 0].tolist()
            pruned = prune_model(network.model, network.example, {group.name: removed})
            with torch.inference_mode():
                expected = pruned(network.images)
            found = network.game(group).outputs(every, kept.expand(len(every), -1))
            assert_near(found, expected)


def test_reference_is_nobody_and_everybody(network):
    for group in network.groups:
        game = network.game(group)
        ends = torch.stack([torch.zeros(group.n_units), torch.ones(group.n_units)]).bool()
        for i in range(2):
            rows = ends[i].expand(len(network.images), -1)
            masked = hook_masked(network.model, group, network.images, rows)
            assert_near(game.reference[:, i], masked)
        with torch.inference_mode():
            assert_near(game.reference[:, 1], network.model(network.images))


def test_chains_are_evaluated_like_any_coalitions(network):
    for group in network.groups:
        game = network.game(group)
        asked = chains(game, 3)
        expected = Game.along(game, *asked)
        for _ in range(2):  # twice: nothing that is kept was overwritten
            assert_near(game.along(*asked), expected)


@pytest.mark.parametrize("rows", [1, 3, 16])
def test_chains_in_small_batches(network, rows):
    for group in network.groups:
        game = network.game(group)
        asked = chains(game, 3 if group.n_units < 64 else 1)
        expected = game.along(*asked)
        game.rows = rows
        assert_near(game.along(*asked), expected, 1e-5)


def test_flat_groups_of_ordinary_networks_take_the_summed_way():
    """What makes chains fast; without it all tests of values would still pass."""
    ways = {
        (name, group): case(name).game(case(name).group(group)).sums is not None
        for name, group in [
            ("Vgg", "features.0"),
            ("Vgg", "features.7"),
            ("Vgg", "classifier.0"),
            ("Residual", "block1.conv1"),
            ("Residual", "block2.conv1"),
            ("Functional", "conv2"),
            ("Concat", "mix"),
            ("resnet18", "layer3.0.conv1"),
            ("digits", "conv3"),
            ("digits", "fc1"),
        ]
    }
    assert all(ways.values()), ways
    deep = [case("Residual").group("stem"), case("Functional").group("conv1")]
    assert not any(group.flat for group in deep)
    assert case("Residual").game(deep[0]).sums is None


def test_chains_of_some_of_the_images(network):
    """Images that are asked for are not the first ones, and not next to each other."""
    for group in network.groups:
        game = network.game(group)
        images, orders, wanted = chains(game, 2)
        some = (images == 1) | (images == 4)
        asked = images[some], orders[some], wanted[some]
        assert_near(game.along(*asked), Game.along(game, *asked))


def test_chains_where_tables_have_room_for_a_single_image(network):
    for group in network.groups:
        game = network.game(group)
        if game.sums is None:
            continue
        asked = chains(game, 3)
        expected = game.along(*asked)
        game.sums.images_at_once = 1
        assert_near(game.along(*asked), expected, 1e-5)


def test_chains_nobody_asks_for(network):
    """As with images of a single active unit, whose coalitions are both known already."""
    for group in network.groups:
        game = network.game(group)
        images, orders, wanted = chains(game, 2)
        found = game.along(images, orders, torch.zeros_like(wanted))
        assert found.shape == (0, game.reference.shape[2])


@pytest.mark.parametrize("rows", [None, 1, 5])
def test_subsets_are_evaluated_like_any_coalitions(network, rows):
    for group in network.groups:
        game = network.game(group)
        image = 2
        players = game.active[image].nonzero()[:, 0]
        players = players[torch.randperm(len(players), generator=torch.Generator().manual_seed(0))]
        for n in (0, 1, 7):
            expected = Game.subset_values(game, image, players[:n])
            small = network.game(group)
            small.rows = rows or small.rows
            assert_near(small.subset_values(image, players[:n]), expected)


def test_all_subsets_of_many_players():
    """More than are tabulated at once (two tables of 8 players each): 2**17 coalitions."""
    group = case("digits").group("conv2")
    game = case("digits").game(group, "target_logit")
    assert game.sums is not None
    players = game.active[0].nonzero()[:17, 0]
    assert len(players) == 17
    found = game.subset_values(0, players)
    random = torch.randint(2**17, (2000,), generator=torch.Generator().manual_seed(0))
    random[0], random[1] = 0, 2**17 - 1
    coalitions = torch.zeros(len(random), group.n_units, dtype=torch.bool)
    coalitions[:, players] = (random[:, None] >> torch.arange(17)) & 1 > 0
    images = torch.zeros(len(random), dtype=torch.int64)
    expected = game.value(images, game.outputs(images, coalitions).double())
    assert_near(found[random], expected)


# --- null players ---------------------------------------------------------------------------------


def test_an_inactive_unit_changes_nothing(network):
    """Whatever the coalition: its value may be left at 0 without looking."""
    for group in network.groups:
        game = network.game(group)
        if not group.flat:
            assert game.active.all()  # a masked consumer could wake it up
            continue
        images, coalitions = draw(len(network.images), group.n_units, 60)
        without = coalitions & game.active[images]
        with_them = coalitions | ~game.active[images]
        expected = hook_masked(network.model, group, network.images[images], with_them)
        found = hook_masked(network.model, group, network.images[images], without)
        assert_near(found, expected, 1e-6)


def test_dead_channels_are_found():
    """The first channels behind these BatchNorms are never positive."""
    for name, group in (("Vgg", "features.3"), ("Residual", "block1.conv1")):
        active = case(name).game(case(name).group(group)).active
        assert not active[:, :2].any()
        assert active[:, 2:].any(0).all()
    # hidden neurons differ by image
    active = case("digits").game(case("digits").group("fc1")).active
    assert len({tuple(row.tolist()) for row in active}) > 1
    hidden = {}
    model = case("digits").model
    handle = model.fc2.register_forward_pre_hook(lambda _, args: hidden.update(x=args[0]))
    with torch.inference_mode():
        model(case("digits").images)
    handle.remove()
    assert torch.equal(active, hidden["x"] != 0)


def test_active_units_of_a_layer_over_height_width_channels():
    """Of 4-dimensional inputs of a linear layer the units are the last dimension."""
    torch.manual_seed(1)
    images = case("ChannelsLastMlp").images
    model = randomise(ChannelsLastMlp())
    model.up.bias[:] -= 1.5  # many neurons are silent, not the same for all images
    group = next(g for g in find_groups(model, images[:1]) if g.name == "up")
    game = NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
        images, case("ChannelsLastMlp").labels, "neg_cross_entropy"
    )
    with torch.inference_mode():
        y = model.norm(model.depth(model.stem(images)).permute(0, 2, 3, 1))
        active = (model.up(y) > 0).any(2).any(1)
    assert 0 < active.sum() < active.numel()
    assert torch.equal(game.active, active)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NAMES)
def test_value_of_outputs(value):
    network = case("digits")
    group = network.group("conv3")
    labels = None if value == "neg_kl_divergence" else network.labels
    game = network.split(group).game(network.images, labels, value)
    images, coalitions = draw(len(network.images), group.n_units, 50)
    found = game.value(images, game.outputs(images, coalitions).double())
    logits = hook_masked(network.model, group, network.images[images], coalitions).double()
    target = network.labels[images]
    log_p = logits.log_softmax(1)
    chosen = log_p.gather(1, target[:, None])[:, 0]
    with torch.inference_mode():
        full = network.model(network.images).double().log_softmax(1)[images]
    others = logits.scatter(1, target[:, None], -torch.inf).amax(1)
    at_target = logits.gather(1, target[:, None])[:, 0]
    expected = {
        "neg_cross_entropy": chosen,
        "target_logit": at_target,
        "logit_margin": at_target - others,
        "target_probability": chosen.exp(),
        "top1": (at_target > others).double(),
        "neg_kl_divergence": -(full.exp() * (full - log_p)).sum(1),
    }[value]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_exact_values_of_a_convolution_are_those_of_brute_force():
    """All 65,536 coalitions through the original network with hooks."""
    network = case("digits")
    group = network.group("conv3")
    assert group.n_units == 16
    image, label = network.images[1:2], int(network.labels[1])
    values = []
    for part in np.array_split(brute_force.subsets(16), 16):
        logits = hook_masked(
            network.model, group, image.expand(len(part), -1, -1, -1), torch.from_numpy(part)
        ).double()
        values.append(logits[:, label] - logits.logsumexp(1))
    known = brute_force.shapley(torch.cat(values).numpy())
    found = estimate(network.game(group), Score(estimator="exact"), list(range(6)))[1]
    assert found.estimator == "exact"
    np.testing.assert_allclose(found.shapley_value, known, rtol=0, atol=1e-4)
    assert found.shapley_value.sum() == pytest.approx(found.value_all - found.value_none, abs=1e-9)


@pytest.mark.parametrize("name", ["Vgg", "Residual", "SqueezeExcite", "digits"])
def test_sampled_values_of_networks(name):
    """Of one image many times: on average the exact ones, as far off as their errors say."""
    network, n_repeats = case(name), 200
    group = next(g for g in network.groups if g.n_units <= 16)
    game = network.split(group).game(
        network.images[:1].expand(n_repeats, -1, -1, -1),
        network.labels[:1].expand(n_repeats),
        "neg_cross_entropy",
    )
    (exact,) = estimate(
        network.split(group).game(network.images[:1], network.labels[:1], "neg_cross_entropy"),
        Score(estimator="exact"),
        [0],
    )
    found = estimate(game, Score(estimator="permutation", permutations=8), list(range(n_repeats)))
    values = np.stack([f.shapley_value for f in found])
    errors = np.stack([f.standard_error for f in found])
    bound = 4 * values.std(0, ddof=1) / np.sqrt(n_repeats) + 1e-6
    assert (np.abs(values.mean(0) - exact.shapley_value) < bound).all()
    assert 0.6 < (errors**2).mean() / ((values - exact.shapley_value) ** 2).mean() < 1.6
    for f in found:
        assert f.value_all == pytest.approx(exact.value_all, abs=1e-5)
        assert f.shapley_value.sum() == pytest.approx(f.value_all - f.value_none, abs=1e-9)


def test_the_digits_are_recognised():
    """Guards the tests above against images or weights that are not the digits'."""
    with torch.inference_mode():
        right = case("digits").model(case("digits").images).argmax(1) == case("digits").labels
    assert right.sum() >= 5  # of 6


# --- precision, memory ----------------------------------------------------------------------------


def test_bfloat16_is_near_float32(network):
    for group in network.groups:
        game = network.game(group, precision="bfloat16")
        images, coalitions = draw(len(network.images), group.n_units, 40)
        expected = network.game(group).outputs(images, coalitions)
        found = game.outputs(images, coalitions)
        assert found.dtype == game.reference.dtype == torch.float32
        assert_near(found, expected, 0.05)
        asked = chains(game, 2)
        assert_near(game.along(*asked), network.game(group).along(*asked), 0.05)
        players = game.active[0].nonzero()[:5, 0]
        values = network.game(group).subset_values(0, players)
        found = game.subset_values(0, players)
        assert found.dtype == torch.float64
        assert_near(found - values, torch.zeros_like(values) + 0.05 * game.reference.abs().max(), 2)


def test_tiny_memory(network):
    """The bound is smaller than the process itself: one row at a time, without tables."""
    for group in network.groups[:2]:
        game = network.game(group, memory=2**20)
        assert game.rows == 1
        assert game.sums is None
        images, coalitions = draw(len(network.images), group.n_units, 10)
        full = network.game(group)
        assert_near(game.outputs(images, coalitions), full.outputs(images, coalitions), 1e-5)
        asked = chains(game, 1)
        assert_near(game.along(*asked), full.along(*asked))
        players = full.active[0].nonzero()[:4, 0]
        assert_near(game.subset_values(0, players), full.subset_values(0, players))


def hungry(x: Tensor) -> Tensor:
    """Asks for more memory than any machine has as soon as the batch is larger than 8."""
    if len(x) > 8:
        torch.empty(2**58)
    return x * 1.5


torch.fx.wrap("hungry")


class Hungry(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(hungry(self.conv2(torch.relu(self.conv1(x))).relu().mean((2, 3))))


class Modest(Hungry):
    def forward(self, x):
        return self.head(1.5 * self.conv2(torch.relu(self.conv1(x))).relu().mean((2, 3)))


def twins(*classes: type[nn.Module]) -> list[nn.Module]:
    """The same weights in two classes."""
    torch.manual_seed(0)
    first, second = (randomise(one()) for one in classes)
    second.load_state_dict(first.state_dict())
    return [first, second]


def test_out_of_memory_halves_the_batch():
    hungry_one, modest = twins(Hungry, Modest)
    images, labels = case("Vgg").images, case("Vgg").labels
    (group,) = [g for g in find_groups(modest, images[:1]) if g.name == "conv1"]
    games = [
        NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
            images, labels, "neg_cross_entropy"
        )
        for model in (hungry_one, modest)
    ]
    assert games[1].rows > 8
    rows, coalitions = draw(5, group.n_units, 60)
    assert_near(games[0].outputs(rows, coalitions), games[1].outputs(rows, coalitions), 1e-5)
    assert 4 < games[0].rows <= 8
    for call in (
        lambda game: game.along(*chains(game, 3)),
        lambda game: game.subset_values(0, torch.arange(6)),
    ):
        games[0].rows = games[1].rows  # as in a fresh game
        assert_near(call(games[0]), call(games[1]), 1e-5)
        assert 4 < games[0].rows <= 8


class Greedy(Modest):
    """Out of memory whatever the batch."""

    def forward(self, x):
        return super().forward(x) + starving(x)


def starving(x: Tensor) -> Tensor:
    if starving.armed:  # the network was sound when it was planned
        torch.empty(2**58)
    return x.new_zeros(())


starving.armed = False
torch.fx.wrap("starving")


def test_out_of_memory_with_a_single_row_is_an_error():
    images = case("Vgg").images
    model = randomise(Greedy())
    group = next(g for g in find_groups(model, images[:1]) if g.name == "conv1")
    game = NetworkSplit(fold(model, images[:1]), group, images[:1]).game(
        images, case("Vgg").labels, "neg_cross_entropy"
    )
    starving.armed = True
    try:
        with pytest.raises(RuntimeError, match="memory"):
            game.outputs(*draw(5, group.n_units, 20))
    finally:
        starving.armed = False


# --- networks that cannot be traced ---------------------------------------------------------------


class DataDependent(Modest):
    """The same as `Modest`; torch.fx cannot follow a condition on the data."""

    def forward(self, x):
        if x.abs().max() > 1e6:
            return self.head.bias.expand(len(x), -1)
        return super().forward(x)


def test_a_network_that_cannot_be_traced():
    """It works through hooks and gives the values of its traceable twin."""
    untraceable, traceable = twins(DataDependent, Modest)
    images, labels = case("Vgg").images, case("Vgg").labels
    with pytest.warns(UserWarning, match="cannot trace DataDependent.*slower"):
        folded = fold(untraceable, images[:1])
    groups = [g for g in find_groups(untraceable, images[:1]) if g.reason is None]
    assert {g.name for g in groups} == {"conv1", "conv2"}
    seeds = list(range(len(images)))
    for group in groups:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it was said once
            split = NetworkSplit(folded, group, images[:1])
            game = split.game(images, labels, "neg_cross_entropy")
        assert split.tail_macs > 0
        twin = NetworkSplit(fold(traceable, images[:1]), group, images[:1]).game(
            images, labels, "neg_cross_entropy"
        )
        rows, coalitions = draw(5, group.n_units, 40)
        assert_near(game.outputs(rows, coalitions), twin.outputs(rows, coalitions))
        assert_near(game.reference, twin.reference)
        asked = chains(twin, 2)
        assert_near(game.along(*asked), twin.along(*asked))
        exact = Score(estimator="exact")
        for one, other in zip(
            estimate(game, exact, seeds), estimate(twin, exact, seeds), strict=True
        ):
            np.testing.assert_allclose(one.shapley_value, other.shapley_value, rtol=0, atol=1e-4)
        game.rows = 3
        assert_near(game.outputs(rows, coalitions), twin.outputs(rows, coalitions))


def test_folding_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    model = randomise(Residual())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inplace = [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)]
    folded = fold(model, case("Vgg").example)
    group = next(g for g in find_groups(model, case("Vgg").example) if g.name == "block1.conv1")
    NetworkSplit(folded, group, case("Vgg").example, precision="bfloat16")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [m.inplace for m in model.modules() if isinstance(m, nn.ReLU)] == inplace
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_a_group_prepared_in_bfloat16_leaves_the_folded_network_in_float32():
    network = case("Vgg")
    group = network.groups[0]
    images, coalitions = draw(5, group.n_units, 20)
    before = network.game(group).outputs(images, coalitions)
    network.game(group, precision="bfloat16").outputs(images, coalitions)
    assert torch.equal(network.game(group).outputs(images, coalitions), before)


# --- cost -----------------------------------------------------------------------------------------


def test_multiply_adds_of_a_tail():
    """Consumers and what lies behind them; written out for the digits network."""
    network = case("digits")
    fc2 = 64 * 10
    fc1 = 16 * 2 * 2 * 64
    conv3 = 16 * 32 * 9 * 4 * 4
    conv2 = 32 * 32 * 9 * 8 * 8
    expected = {
        "conv1": conv2 + conv3 + fc1 + fc2,
        "conv2": conv3 + fc1 + fc2,
        "conv3": fc1 + fc2,
        "fc1": fc2,
    }
    found = {group.name: network.split(group).tail_macs for group in network.groups}
    assert found == expected
