"""A job's network: made, given its shape by an image where it needs one, filled."""

import pickle

import pytest
import safetensors.torch
import timm.layers
import torch
from torch import nn

from shapray import zoo
from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.digest import weights_digest
from shapray.inputs.model import build_model, read_model

DIGITS = "shapray.zoo:digits_cnn"


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(7)
    return zoo.digits_cnn()


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_a_checkpoint(network, tmp_path, wrapped, prefix):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({"net": state, "epoch": 3} if wrapped else state, tmp_path / "net.pth.tar")
    read = build_model(Model(factory=DIGITS, weights=str(tmp_path / "net.pth.tar")))
    assert weights_digest(read) == weights_digest(network)
    assert not read.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_weights_of_less_precision_become_float32(network, tmp_path, dtype):
    state = {n: t.to(dtype) if t.ndim > 1 else t for n, t in network.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    read = build_model(Model(factory=DIGITS, weights=str(tmp_path / "net.safetensors")))
    assert {parameter.dtype for parameter in read.parameters()} == {torch.float32}
    assert torch.equal(read.get_parameter("fc1.weight"), state["fc1.weight"].float())


def test_misfit_lists_what_does_not_fit(network):
    state = network.state_dict()
    del state["fc1.bias"]
    state["fc3.bias"] = torch.zeros(10)
    state["fc2.weight"] = torch.zeros(11, 64)
    with pytest.raises(JobError) as caught:
        build_model(Model(factory=DIGITS), state)
    message = str(caught.value)
    assert "1 missing: fc1.bias" in message
    assert "1 unexpected: fc3.bias" in message
    assert "fc2.weight (11, 64) in the file, (10, 64) in the network" in message


def test_missing_batch_counts_are_no_misfit(network):
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    read = build_model(Model(factory=DIGITS), state)
    assert torch.equal(read.get_parameter("fc1.weight"), network.get_parameter("fc1.weight"))


def test_own_initialisation_is_the_same_everywhere_and_leaves_the_stream_alone():
    torch.manual_seed(1)
    first = build_model(Model(factory=DIGITS))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert weights_digest(build_model(Model(factory=DIGITS))) == weights_digest(first)


def test_torchvision_factory():
    model = Model(
        factory="torchvision.models:squeezenet1_1", kwargs={"weights": None, "num_classes": 5}
    )
    assert build_model(model)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


def on_meta(of=zoo.digits_cnn):
    with torch.device("meta"):
        return of()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"factory": DIGITS, "kwargs": {"depth": 3}}, "unexpected keyword argument 'depth'"),
        ({"factory": "collections:OrderedDict"}, r"returned a OrderedDict, not a torch\.nn"),
        ({"factory": f"{__name__}:on_meta"}, r"on the meta device, without values \(conv1\.weight"),
    ],
)
def test_factories_that_give_no_network(section, words):
    with pytest.raises(JobError, match=rf"model\.factory: .*{words}"):
        build_model(Model(**section))


def test_digest_sees_every_bit(network):
    before = weights_digest(network)
    network.get_buffer("bn1.running_mean")[3] += 1e-6
    assert weights_digest(network) != before


def test_weights_that_are_not_finite_are_named(network):
    network.fc1.weight.data[3, 4] = torch.nan
    section = Model(factory=DIGITS, weights="w.safetensors")
    with pytest.raises(JobError, match=r"1 with values that are not finite: fc1\.weight"):
        build_model(section, network.state_dict())


# -- layers that take their shape from the first image

IMAGE = torch.zeros(1, 3, 8, 8)
LAZY = Model(factory=f"{__name__}:Lazy")


class Lazy(nn.Module):
    def __init__(self, unused=False):
        super().__init__()
        self.first, self.norm, self.last = (
            nn.LazyConv2d(6, 3),
            nn.LazyBatchNorm2d(),
            nn.LazyLinear(4),
        )
        if unused:
            self.unused = nn.LazyLinear(3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu().mean((2, 3)))


def test_an_image_gives_lazy_layers_their_shape(tmp_path):
    first = build_model(LAZY, example=IMAGE)
    assert first.get_parameter("first.weight").shape == (6, 3, 3, 3)
    assert weights_digest(build_model(LAZY, example=IMAGE)) == weights_digest(first)
    assert torch.equal(first.get_buffer("norm.running_mean"), torch.zeros(6))  # untouched
    assert weights_digest(pickle.loads(pickle.dumps(first))) == weights_digest(first)

    other = Lazy()
    other(IMAGE + 1)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    read = build_model(LAZY.model_copy(update={"weights": str(tmp_path / "w.pt")}), example=IMAGE)
    assert weights_digest(read) == weights_digest(other)


@pytest.mark.parametrize(
    ("kwargs", "example", "words"),
    [
        ({}, None, r"first\.weight has no shape yet; initialise lazy layers in the factory"),
        ({}, torch.zeros(1, 3, 2, 2), r"images of shape \(1, 3, 2, 2\) do not pass .*Kernel size"),
        ({"unused": True}, IMAGE, r"unused\.weight has no shape even after an image"),
    ],
)
def test_lazy_layers_that_get_no_shape(kwargs, example, words):
    with pytest.raises(JobError, match=rf"model\.factory: {words}"):
        build_model(LAZY.model_copy(update={"kwargs": kwargs}), example=example)


# -- what lies around a network, and around parts of it


def in_parallel():
    network = zoo.digits_cnn()
    network.conv2 = nn.DataParallel(network.conv2)
    return nn.DataParallel(network)


@pytest.mark.parametrize("trained", [zoo.digits_cnn, in_parallel])
def test_wrappers_come_off_network_and_weights(trained, tmp_path):
    torch.manual_seed(7)
    state = trained().state_dict()
    torch.save(state, tmp_path / "w.pt")
    read = build_model(Model(factory=f"{__name__}:in_parallel", weights=str(tmp_path / "w.pt")))
    assert type(read.conv2) is nn.Conv2d
    torch.manual_seed(7)
    assert weights_digest(read) == weights_digest(zoo.digits_cnn())


def standardised():
    return nn.Sequential(
        timm.layers.StdConv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def test_constants_are_those_of_the_weights_that_were_loaded():
    trained = standardised().eval()
    read = read_model(Model(factory=f"{__name__}:standardised"), trained.state_dict())
    image = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(read.network(image), trained(image))
    assert type(read.network[0]) is nn.Conv2d
    assert read.notes == ("the same by a plain layer, StdConv2d -> Conv2d: 0",)
