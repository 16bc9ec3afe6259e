"""The networks, images and groups that the benchmarks run on; the same for every method."""

import copy
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from shapray.config import Images, Model, Transform
from shapray.engine.network_game import NetworkGame, NetworkSplit
from shapray.engine.trace import fold
from shapray.inputs.digest import digest, weights_digest
from shapray.inputs.images import ImageSet, open_images
from shapray.inputs.model import build_model
from shapray.network.check import check_group
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.pruning.latency import processor, processor_name
from shapray.shapley.coalitions import image_seed

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
VALUE = "neg_cross_entropy"
NETWORKS = ("resnet20", "digits")
CIFAR = ("resnet20", "resnet56")
CIFAR_TRANSFORM = Transform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Network:
    """A trained network, its images and its scorable flat groups.

    Attributes:
        model: as it was loaded.
        folded: the network as `engine.trace.fold` leaves it; every method evaluates this one.
        images: (n, channels, height, width) float32, as many of every class as possible.
        labels: (n,) int64.
        groups: flat groups that pass the check that removing is masking, in network order.
    """

    name: str
    model: nn.Module
    folded: nn.Module
    images: Tensor
    labels: Tensor
    image_ids: list[str]
    groups: list[Group]
    digest: str

    @property
    def example(self) -> Tensor:
        return self.images[:1]

    def split(self, group: Group, precision: str = "float32", memory: int = 2**31) -> NetworkSplit:
        return NetworkSplit(self.folded, group, self.example, precision=precision, memory=memory)

    def game(self, split: NetworkSplit, first: int = 0, last: int | None = None) -> NetworkGame:
        return split.game(self.images[first:last], self.labels[first:last], VALUE)

    def seeds(self, seed: int, group: Group) -> list[int]:
        """A random stream per image, as a job has them."""
        return [image_seed(seed, group.name, image_id) for image_id in self.image_ids]


def cifar_model(name: str) -> Model:
    """`resnet20` or `resnet56`, trained on CIFAR-10 (../shared/data)."""
    return Model(factory=f"shapray.zoo:{name}", weights=str(DATA / f"{name}_cifar10.safetensors"))


def cifar_images(name: str, n_images: int | None, seed: int = 0) -> Images:
    """Some of the `calibration` or `evaluation` images, as many of every class; None: all."""
    path = str(DATA / f"cifar10_{name}.parquet")
    return Images(source="parquet", path=path, limit=n_images, seed=seed)


def load(name: str, n_images: int, draw: int = 0, images: str = "calibration") -> Network:
    """A trained network with some of its images; another draw takes others.

    Args:
        name: `resnet20` or `resnet56` (CIFAR-10, ../shared/data), `digits` or `digits_vgg`
            (jobs/data).
        images: "calibration", "evaluation", or, of the digits, "train".
    """
    if name in CIFAR:
        model = cifar_model(name)
    else:
        factory = {"digits": "digits_cnn", "digits_vgg": "digits_vgg"}[name]
        model = Model(
            factory=f"shapray.zoo:{factory}",
            weights=str(ROOT / f"jobs/data/{factory}.safetensors"),
        )
    network = build_model(model)
    found = open_set(name, images, n_images, draw)
    pixels = found.load(0, len(found))
    assert found.labels is not None
    groups = [
        group
        for group in find_groups(network, pixels[:1])
        if group.reason is None
        and group.flat
        and check_group(network, group, pixels[:4], seed=0) is None
    ]
    return Network(
        name=name,
        model=network,
        folded=fold(network, pixels[:1]),
        images=pixels,
        labels=found.labels,
        image_ids=found.ids,
        groups=groups,
        digest=digest([weights_digest(network), found.digest()]),
    )


def open_set(name: str, images: str, n_images: int, draw: int = 0) -> ImageSet:
    """Some of a network's images, "calibration" or "evaluation", as many of every class as
    possible."""
    if name in CIFAR:
        section, transform = cifar_images(images, n_images, draw), CIFAR_TRANSFORM
    else:
        section = Images(
            source="parquet",
            path=str(ROOT / "jobs/data/digits.parquet"),
            where={"split": images},
            limit=n_images,
            seed=draw,
        )
        transform = Transform(mode="L")
    return open_images(section, transform, f"benchmark {name}")


def selected(network: Network, patterns: Sequence[str]) -> list[Group]:
    """The groups whose name matches one of the glob patterns."""
    return [g for g in network.groups if any(fnmatch(g.name, pattern) for pattern in patterns)]


def ready_tail(split: NetworkSplit) -> fx.GraphModule:
    """The tail from the consumers' inputs on, without the product with a mask.

    Returns:
        (sides per row, input of each consumer per row) -> outputs, in the split's precision. It
        may overwrite its inputs, but only by what a second call would put there again.
    """
    tail = copy.deepcopy(split.masked)
    masks = [n for n in tail.graph.nodes if n.op == "placeholder" and n.name.startswith("mask_")]
    for mask in masks:
        (product,) = mask.users
        product.replace_all_uses_with(mask)
        tail.graph.erase_node(product)
    tail.recompile()
    return tail


def ready_inputs(split: NetworkSplit, game: NetworkGame, index: Tensor) -> list[Tensor]:
    """Inputs of `ready_tail` with every unit kept; index: (n_rows,), the image of each row."""
    assert split.parts is not None
    inputs = []
    for source in (*range(len(game.low_sides)), *split.parts.sources):
        assert source is not None, "the group is flat"
        inputs.append(game.low_sides[source][index])
    return inputs


def wide_instructions() -> list[str]:
    """What the processor has of what matters here."""
    flags = processor().get("flags", "").split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def machine() -> str:
    """One line about what the benchmark ran on."""
    return (
        f"{processor_name()} ({', '.join(wide_instructions()) or 'no wide instructions known'}), "
        f"{torch.get_num_threads()} thread(s), torch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )
