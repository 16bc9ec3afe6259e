"""The zoo's networks: shapes, traceability, and the published figures of the CIFAR ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapray import zoo
from shapray.config import Images, Model, Transform
from shapray.inputs.images import ImageSet, open_images
from shapray.inputs.model import build_model
from shapray.network.consumers import active_units
from shapray.network.find import find_groups

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
needs_cifar = pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} is not there")


def figures(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[float, float]:
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in images.split(250)]).double()
    accuracy = (logits.argmax(1) == labels).double().mean()
    return float(accuracy), float(F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        (zoo.resnet20, (2, 3, 32, 32)),
        (zoo.resnet56, (2, 3, 32, 32)),
        (zoo.digits_cnn, (2, 1, 8, 8)),
        (zoo.digits_vgg, (2, 1, 8, 8)),
    ],
)
def test_traces_and_gives_logits(factory, shape):
    model = factory(num_classes=7).eval()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (2, 7)
    assert torch.equal(torch.fx.symbolic_trace(model)(images), logits)


@needs_cifar
@pytest.mark.parametrize(
    ("name", "accuracy", "loss"),
    [
        ("resnet20", 0.8135, 0.8328),
        pytest.param("resnet56", 0.8315, 0.8921, marks=pytest.mark.slow),
    ],
)
def test_cifar_figures(name, accuracy, loss):
    images = open_images(
        Images(source="parquet", path=str(SHARED / "cifar10_evaluation.parquet")),
        Transform(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        "data.evaluation",
    )
    weights = SHARED / f"{name}_cifar10.safetensors"
    model = build_model(Model(factory=f"shapray.zoo:{name}", weights=str(weights)))
    found = figures(model, images.load(0, len(images)), images.labels)
    assert (round(found[0], 4), round(found[1], 4)) == (accuracy, loss)


def digits(split: str) -> ImageSet:
    return open_images(
        Images(
            source="parquet",
            path=str(ROOT / "jobs/data/digits.parquet"),
            where={"split": split},
        ),
        Transform(mode="L"),
        f"data.{split}",
    )


def shipped(name: str) -> nn.Module:
    weights = ROOT / f"jobs/data/{name}.safetensors"
    return build_model(Model(factory=f"shapray.zoo:{name}", weights=str(weights)))


def test_shipped_digits_network():
    """What the quickstart rests on: it is right, and its hidden layer wants both estimators."""
    images, model = digits("evaluation"), shipped("digits_cnn")
    pixels = images.load(0, len(images))
    assert figures(model, pixels, images.labels)[0] >= 0.98
    assert model.get_submodule("conv3").out_channels == 16

    seen = []
    model.get_submodule("fc2").register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.inference_mode():
        model(pixels)
    n_active = (seen[0] > 0).sum(1)
    for limit in (12, 16):
        assert 0.05 < (n_active <= limit).double().mean() < 0.95


def test_shipped_vgg():
    """What the comparison of hybrid and sampling rests on: it is right, and of 64 late units most
    are silent on most images."""
    images, model = digits("evaluation"), shipped("digits_vgg")
    pixels = images.load(0, len(images))
    assert figures(model, pixels, images.labels)[0] >= 0.98
    groups = [group for group in find_groups(model, pixels[:1]) if group.name.startswith("block3")]
    assert [group.n_units for group in groups] == [64, 64]
    for active in active_units(model, groups, pixels).values():
        n_active = active.sum(1)
        assert (n_active <= 12).double().mean() > 0.8
        assert n_active.min() > 2
        assert active.any(0).sum() > 32
