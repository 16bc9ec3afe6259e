"""Networks that cannot be scored are refused in words; ordinary ones pass."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.errors import NetworkError
from shapray.network.probe import ForwardError, probe
from shapray.zoo import digits_cnn, resnet20


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self, inputs: int = 3) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.c1, self.n1 = nn.Conv2d(inputs, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.c2 = nn.Conv2d(6, 5, 3, padding=1)
        self.fc = nn.Linear(5, 3)

    def features(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.n1(self.c1(x))), 2)
        return F.relu(self.c2(x)).mean((2, 3))  # (n, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


class With(Net):
    """`Net` with something done to its features, and something to its outputs."""

    def __init__(self, features=lambda x: x, outputs=lambda x: x) -> None:
        super().__init__()
        self.between, self.after = features, outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.fc(self.between(self.features(x))))


@pytest.mark.parametrize(
    "model",
    [
        Net(),
        resnet20(),
        With(outputs=lambda x: x.log_softmax(1)),
        With(outputs=F.relu),  # not negative, but no probabilities
        With(features=lambda x: x * torch.ones(5, dtype=torch.float32)),
        With(features=lambda x: F.dropout(x, 0.3, training=False)),
        With(features=lambda x: F.layer_norm(x, (5,))),
        With(outputs=lambda x: x.where(x < 0, torch.inf)),  # that is found where it is scored
    ],
)
def test_ordinary_networks_pass(model):
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert probe(model, images()) == model(images()).shape[1]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert next(model.parameters()).dtype == torch.float32


def test_a_float32_constant_inside_is_no_obstacle():
    scale = torch.ones(5, 5)  # a product with float64 features would fail
    assert probe(With(features=lambda x: x @ scale).eval(), images()) == 3


def changed_in_place(x: Tensor) -> Tensor:
    x -= 0.5
    return x


@pytest.mark.parametrize(
    "first", [changed_in_place, nn.ReLU(inplace=True), lambda x: x + torch.from_numpy(x.numpy())]
)
def test_a_network_that_changes_its_input_is_ordinary_and_the_images_stay(first):
    model = nn.Sequential(Called(first), Net()).eval()
    given = images()
    before = given.clone()
    assert probe(model, given) == 3
    assert torch.equal(given, before)


class Called(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_compiled_network_is_ordinary():
    assert probe(torch.compile(Net(), backend="eager").eval(), images()) == 3


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (lambda x: x.squeeze(), r"for 1 image it returns a tensor of shape \(3,\)"),
        (lambda x: x * torch.nan, "all the network's outputs are NaN for the first 4 images"),
        (lambda x: x * 0, "all the network's outputs are 0 for the first 4 images"),
    ],
)
def test_outputs_that_say_nothing_about_an_image(outputs, found):
    with pytest.raises(NetworkError, match=found):
        probe(With(outputs=outputs).eval(), images())


class Coupled(Net):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc(x - self.strength * x.mean(0, keepdim=True))


@pytest.mark.parametrize("strength", [0.5, 1e-5])
def test_outputs_that_depend_on_the_batch(strength):
    with pytest.raises(NetworkError, match="depends on the other images of the batch"):
        probe(Coupled(strength).eval(), images())


def test_it_shows_on_images_that_are_all_alike():
    with pytest.raises(NetworkError, match="depends on the other images of the batch"):
        probe(Coupled(0.5).eval(), images(1).expand(4, -1, -1, -1))


def test_batchnorm_without_running_statistics():
    model = Net()
    model.n1 = nn.BatchNorm2d(6, track_running_stats=False)
    with pytest.raises(NetworkError, match="BatchNorm without running statistics"):
        probe(model.eval(), images())


@pytest.mark.parametrize(
    "outputs",
    [
        lambda x: (20 * x).softmax(1),
        lambda x: x.softmax(1).half().float(),
        lambda x: x.exp() / x.exp().sum(1, keepdim=True),
        lambda x: x.sigmoid(),
    ],
)
def test_probabilities_are_no_logits(outputs):
    with pytest.raises(NetworkError, match=r"probabilities.* not logits"):
        probe(With(outputs=outputs).eval(), images())


def depth(x: Tensor) -> Tensor:
    return 1.5 * x if torch.rand(1).item() < 0.7 else x


@pytest.mark.parametrize("features", [lambda x: F.dropout(x, 0.3), depth])
def test_random_networks(features):
    torch.manual_seed(0)
    with pytest.raises(NetworkError, match="from one time to the next for the same image"):
        probe(With(features=features).eval(), images())


def test_the_networks_own_error_comes_first_and_says_where():
    with pytest.raises(ForwardError) as failed:
        probe(Net(inputs=1).eval(), images())
    message = str(failed.value)
    assert message.startswith("RuntimeError: Given groups=1, weight of size [6, 1, 3, 3]")
    assert "(in c1, a Conv2d; the images are (3, 16, 16): channels, height, width)" in message
    assert failed.value.takes_channels == 1

    with pytest.raises(ForwardError, match=r"^RuntimeError: mat1 and mat2.*\(in fc1, a Linear"):
        probe(digits_cnn().eval(), images()[:, :1])


def test_a_bug_in_forward():
    def bug(x: Tensor) -> Tensor:
        raise AttributeError("no 'missing'")

    with pytest.raises(ForwardError, match=r"^AttributeError: no 'missing' \(in its own forward"):
        probe(With(outputs=bug).eval(), images())


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        (lambda x: x[0], r"a tensor of shape \(3,\)"),
        (lambda x: x[:, :, None], r"a tensor of shape \(1, 3, 1\)"),
        (lambda x: {"logits": x}, "a dict"),
        (lambda x: x.argmax(1, keepdim=True), "torch.int64"),
    ],
)
def test_outputs_of_another_form(outputs, found):
    with pytest.raises(NetworkError, match=rf"must return logits of shape.*it returns {found}"):
        probe(With(outputs=outputs).eval(), images())


def test_torchscript_is_refused_by_name():
    with pytest.raises(NetworkError, match="TorchScript"):
        probe(torch.jit.script(Net().eval()), images())
