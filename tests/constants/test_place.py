"""Constants in another form: put in place, the outputs are the same."""

import pytest
import timm.layers
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from torchvision.ops import FrozenBatchNorm2d

from shapray.constants.convolutions import SamePaddedConv2d
from shapray.constants.place import copied, put_in_place

SIZES = ((16, 16), (15, 18))  # of images


class Net(nn.Module):
    def __init__(self, conv=nn.Conv2d, norm=nn.BatchNorm2d, **options):
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.n1 = conv(3, 6, 3, **options), norm(6)
        self.c2, self.n2 = conv(6, 5, 3, **options), norm(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = F.relu(self.n2(self.c2(F.relu(self.n1(self.c1(x))))))
        return self.fc(x.mean((2, 3)))


class Standardised(nn.Conv2d):
    """Weight standardisation as papers write it down."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self._conv_forward(x, weight, self.bias)


class Padding(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (2, 2, 1, 1)), self.weight, self.bias, self.stride)


class Behind(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride)


class Routed(nn.Conv2d):
    """Its weight depends on the image."""

    def forward(self, x):
        return F.conv2d(x, self.weight * x.mean().sigmoid(), self.bias)


class Active(Standardised):
    def forward(self, x):
        return super().forward(x).relu()


class DetectionNorm(nn.Module):
    """Frozen statistics as DETR has them; there is no `eps`."""

    def __init__(self, n):
        super().__init__()
        for name in ("weight", "running_var"):
            self.register_buffer(name, torch.rand(n) + 0.5)
        for name in ("bias", "running_mean"):
            self.register_buffer(name, torch.randn(n))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class Shifting(DetectionNorm):
    """Has the same buffers and does something else."""

    def forward(self, x):
        return super().forward(x) + 0.01


def both(wrap):
    """Both convolutions by what wraps one, after some training steps' worth of power iterations."""

    def make():
        network = Net()
        network.c1, network.c2 = wrap(network.c1), wrap(network.c2)
        network(torch.randn(4, 3, 16, 16))
        return network

    return make


def masked():
    network = Net()
    prune.l1_unstructured(network.c1, "weight", 0.3)
    prune.random_unstructured(network.fc, "bias", 1)
    return network


def norms(kind):
    def make():
        network = Net(norm=kind)
        for name, buffer in network.named_buffers():
            buffer.copy_(torch.rand_like(buffer) + 0.5 * name.endswith("var"))
        return network

    return make


MADE_PLAIN = {
    "weight_norm": both(weight_norm),
    "spectral_norm": both(spectral_norm),
    "parametrized weight_norm": both(parametrizations.weight_norm),
    "parametrized spectral_norm": both(parametrizations.spectral_norm),
    "orthogonal": both(parametrizations.orthogonal),
    "masks": masked,
    "FrozenBatchNorm2d": norms(FrozenBatchNorm2d),
    "eps": norms(lambda n: FrozenBatchNorm2d(n, eps=0.1)),
    "DETR's": norms(DetectionNorm),
    "standardised": lambda: Net(Standardised, padding=1, groups=1),
    "standardised, reflected": lambda: Net(Standardised, padding=1, padding_mode="reflect"),
    "timm's standardised": lambda: Net(timm.layers.StdConv2d, padding=1, stride=2),
    "timm's scaled": lambda: Net(timm.layers.ScaledStdConv2d, padding=1, dilation=2),
    "timm's same": lambda: Net(timm.layers.StdConv2dSame, stride=2),
    "timm's scaled same": lambda: Net(timm.layers.ScaledStdConv2dSame, stride=2),
    "padding": lambda: Net(Padding, stride=2),
}


@pytest.mark.parametrize("make", MADE_PLAIN.values(), ids=MADE_PLAIN)
def test_outputs_stay_and_layers_are_plain(make):
    network = make().eval()
    images = [torch.randn(2, 3, *size) for size in SIZES]
    with torch.no_grad():
        before = [network(batch) for batch in images]
        done = put_in_place(network)
        for batch, right in zip(images, before):
            torch.testing.assert_close(network(batch), right, rtol=0, atol=1e-6 * right.abs().max())
    kinds = {type(module) for module in network.modules()}
    assert kinds <= {Net, nn.Conv2d, nn.BatchNorm2d, nn.Linear, SamePaddedConv2d}
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert {name.rpartition(".")[2] for name in network.state_dict()} <= {
        *("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    assert len(done) == 1


def test_padding_by_the_size_of_the_image_stays_that():
    network = Net(timm.layers.StdConv2dSame, stride=2).eval()
    put_in_place(network)
    assert isinstance(network.c1, SamePaddedConv2d)
    assert not put_in_place(network)


def test_what_is_said():
    network = norms(FrozenBatchNorm2d)().eval()
    parametrizations.weight_norm(network.fc)
    assert put_in_place(network) == [
        "computed at every pass before, a plain parameter now: fc.weight",
        "the same by a plain layer, FrozenBatchNorm2d -> BatchNorm2d: n1, n2",
    ]


@pytest.mark.parametrize("conv", [nn.Conv2d, Routed, Active, Behind, timm.layers.Conv2dSame])
def test_what_no_plain_layer_does_stays(conv):
    network = Net(conv, stride=2).eval()
    assert not put_in_place(network)
    assert type(network.c1) is conv


def test_other_buffers_by_the_same_names_stay():
    network = norms(Shifting)().eval()
    assert not put_in_place(network)


def test_hooks_of_the_users_stay():
    network = Net(Standardised).eval()
    network.c1.register_forward_hook(lambda module, given, output: 2 * output)
    put_in_place(network)
    assert type(network.c1) is Standardised
    assert type(network.c2) is nn.Conv2d


def test_a_shared_layer_stays_shared():
    network = Net(Standardised).eval()
    network.again = network.c1
    put_in_place(network)
    assert network.again is network.c1
    assert type(network.again) is nn.Conv2d


def test_a_plain_layer_is_as_trainable_as_the_one_before():
    network = Net(Standardised, norm=FrozenBatchNorm2d).eval()
    network.c1.requires_grad_(False)
    put_in_place(network)
    trainable = {name for name, tensor in network.named_parameters() if tensor.requires_grad}
    assert trainable == {"c2.weight", "c2.bias", "fc.weight", "fc.bias"}


@pytest.mark.parametrize("wrap", [weight_norm, spectral_norm])
def test_networks_with_computed_weights_are_copied(wrap):
    network = both(wrap)().eval()
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(copied(network)(images), network(images))
