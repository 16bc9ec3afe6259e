"""Libraries' networks by their names."""

import sys

import pytest
import torch

from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.model import build_model
from shapray.inputs.named import named_model


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        ("timm:resnet18", (3, 224, 224)),
        ("timm:test_resnet.r160_in1k", (3, 160, 160)),
        ("torchvision:squeezenet1_1", (3, 224, 224)),
        ("torchvision:inception_v3", (3, 299, 299)),
    ],
)
def test_a_network_and_the_images_it_was_made_for(spec, shape):
    network, found = named_model(spec)
    assert found == shape
    assert not network.training
    assert network(torch.zeros(1, *shape)).shape == (1, 1000)


@pytest.mark.parametrize(
    ("factory", "kwargs"),
    [
        ("timm:test_resnet", {"num_classes": 5}),
        ("timm:create_model", {"model_name": "test_resnet", "num_classes": 5}),
        ("timm.create_model", {"model_name": "test_resnet", "num_classes": 5}),
        ("torchvision:squeezenet1_1", {"num_classes": 5}),
        ("torchvision.models.squeezenet1_1", {"num_classes": 5}),
    ],
)
def test_as_factories_of_a_job(factory, kwargs):
    network = build_model(Model(factory=factory, kwargs=kwargs))
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:resnet19", "no network 'timm:resnet19'; close to it: .*resnet1"),
        ("torchvision:resnet51", "no network 'torchvision:resnet51'; close to it: resnet5"),
        ("timm:no_such_thing_at_all", "no network 'timm:no_such_thing_at_all'$"),
        ("shapray.zoo:resnet20", r"'shapray.zoo:resnet20' is no network's name; right is"),
        ("resnet20", "is not of the form module:callable"),
    ],
)
def test_names_of_no_network(spec, words):
    with pytest.raises(JobError, match=words):
        named_model(spec)


def test_what_to_install_for_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not there
    with pytest.raises(JobError, match=r"^model\.factory: .*pip install 'shapray\[timm\]'$"):
        build_model(Model(factory="timm:resnet18"))
