"""Networks that return more than logits, or less: read as logits, and still the user's own."""

import copy
import pickle
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
import transformers
from torch import Tensor, fx, nn
from torch.nn import functional as F

from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.model import build_model, read_model
from shapray.inputs.outputs import own, read_logits, with_one_logit

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", ["classes", "features"])


@dataclass
class Found:
    logits: Tensor
    features: Tensor


class Net(nn.Module):
    """`gives`: what is made of its outputs (n, n_outputs) and features (n, 4)."""

    def __init__(self, gives, n_outputs=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.gives = nn.Conv2d(3, 4, 3), nn.Linear(4, n_outputs), gives

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return self.gives(self.fc(features), features)


def plain(logits, features):
    return logits


def as_dict(logits, features):
    return {"features": features, "logits": logits}


def as_pair(logits, features):
    return Pair(logits, features)


@pytest.mark.parametrize(
    ("gives", "output"),
    [
        (as_dict, None),
        (Found, None),
        (lambda logits, features: (logits,), None),
        (lambda logits, features: {"classes": logits, "epoch": 3}, None),
        (as_pair, "classes"),
        (lambda logits, features: [features, logits], "1"),
    ],
)
def test_one_of_several_outputs_is_read(gives, output):
    network = Net(gives).eval()
    names = list(network.state_dict())
    [said] = read_logits(network, IMAGE, output)
    assert "is read" in said
    assert torch.equal(network(IMAGE), Net(plain).eval()(IMAGE))
    assert list(network.state_dict()) == names
    assert isinstance(network, Net)
    assert not isinstance(own(network)(IMAGE), Tensor)
    assert type(network) is Net


def test_logits_alone_are_left_alone():
    network = Net(plain).eval()
    assert not read_logits(network, IMAGE)
    assert type(network) is Net


@pytest.mark.parametrize("hidden", ["resnet", "convnext", "regnet", "mobilenet_v2"])
def test_classifiers_of_transformers(hidden):
    config, make = {
        "resnet": (transformers.ResNetConfig, transformers.ResNetForImageClassification),
        "convnext": (transformers.ConvNextConfig, transformers.ConvNextForImageClassification),
        "regnet": (transformers.RegNetConfig, transformers.RegNetForImageClassification),
        "mobilenet_v2": (
            transformers.MobileNetV2Config,
            transformers.MobileNetV2ForImageClassification,
        ),
    }[hidden]
    small = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
    options = {"depth_multiplier": 0.25} if hidden == "mobilenet_v2" else small
    network = make(config(**options, num_labels=3, groups_width=4)).eval()
    right = network(IMAGE).logits
    assert len(read_logits(network, IMAGE)) == 1
    assert torch.equal(network(IMAGE), right)
    assert torch.equal(own(network)(IMAGE).logits, right)


@pytest.mark.parametrize(
    ("gives", "output", "words"),
    [
        (as_pair, None, r"model\.output: .* a Pair of classes \(3,\), features \(4,\).*name"),
        (as_pair, "scores", r"model\.output: .* no output 'scores'; its Pair has classes"),
        (plain, "logits", r"model\.output: logits, and the network returns one tensor"),
        (lambda logits, features: {}, None, "returns a dict without tensors"),
    ],
)
def test_outputs_that_cannot_be_read(gives, output, words):
    with pytest.raises(JobError, match=words):
        read_logits(Net(gives).eval(), IMAGE, output)


def squeezed(logits, features):
    return logits.squeeze(1)


@pytest.mark.parametrize("gives", [plain, squeezed, as_dict])
def test_one_logit_is_read_as_two(gives):
    network = Net(gives, n_outputs=1).eval()
    assert "the logit z of label 1" in read_logits(network, IMAGE)[-1]
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 0, 1, 1, 0])
    z = Net(plain, n_outputs=1).eval()(images)
    logits = network(images)
    assert torch.equal(logits.argmax(1) == 1, z[:, 0] > 0)
    binary = F.binary_cross_entropy_with_logits(z[:, 0], labels.float())
    torch.testing.assert_close(F.cross_entropy(logits, labels), binary)
    assert torch.equal(logits, logits.flip(1).neg())  # neither label is favoured


@pytest.mark.parametrize("gives", [plain, as_dict])
def test_a_program_has_the_one_logit(gives):
    network = Net(gives, n_outputs=1).eval()
    read_logits(network, IMAGE)
    assert torch.equal(with_one_logit(network)(IMAGE), Net(plain, n_outputs=1).eval()(IMAGE))


def test_one_probability_is_no_logit():
    network = Net(lambda z, _: {"logits": z.sigmoid().squeeze(1)}, n_outputs=1).eval()
    with pytest.raises(JobError, match="ends in a sigmoid"):
        read_logits(network, IMAGE)


def test_copies_pickles_and_graphs_read_the_same():
    network = Net(as_dict).eval()
    read_logits(network, IMAGE)
    right = network(IMAGE)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(IMAGE), right)
        assert type(own(again)) is Net
    assert torch.equal(fx.symbolic_trace(network)(IMAGE), right)


def test_networks_that_are_read_elsewhere_are_told_of():
    graph = fx.symbolic_trace(Net(as_dict).eval())
    with pytest.raises(JobError, match=r"torch\.fx graph that does not return logits"):
        read_logits(graph, IMAGE)
    network = Net(as_dict).eval()
    network.forward = network.forward
    with pytest.raises(JobError, match="its forward is not that of its class Net"):
        read_logits(network, IMAGE)


def test_modules_keep_the_mode_they_were_in():
    network = Net(as_dict)
    network.fc.eval()
    read_logits(network, IMAGE)
    assert network.training
    assert not network.fc.training


def second_of_two():
    return Net(lambda logits, features: (features, logits))


def test_a_job_names_the_output():
    model = Model(factory=f"{__name__}:second_of_two", output=1)
    assert build_model(model, example=IMAGE)(IMAGE).shape == (1, 3)
    assert "1 is read" in read_model(model, example=IMAGE).notes[0]
