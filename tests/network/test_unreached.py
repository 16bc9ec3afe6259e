"""Heads that only training uses, on networks whose streams are cut."""

import pytest
import torch
import torchvision
from plain import without
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.network.unreached import apply_settings, drop_unreached

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Aided(nn.Module):
    """Two heads beside the last, of the first and the second convolution's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled, self.with_aids = True, True
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2, self.head = nn.Conv2d(6, 7, 3, padding=1), nn.Linear(7, 5)
        self.aid1 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
        self.aid2 = nn.Sequential(nn.Conv2d(7, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.spare = nn.Linear(6, 5)  # nobody calls it

    def forward(self, x: Tensor) -> object:
        x = F.dropout(F.relu(self.bn1(self.conv1(x * 2 if self.scaled else x))), 0.1, self.training)
        aids = [self.aid1(x)] if self.training and self.aid1 is not None else []
        x = F.relu(self.conv2(x))
        if self.training and self.aid2 is not None:
            aids.append(self.aid2(x))
        x = self.head(x.mean((2, 3)))
        return (x, aids) if self.training and self.with_aids else x


class Insisting(Aided):
    """Calls its heads without a look whether they are there."""

    def forward(self, x: Tensor) -> object:
        x = F.relu(self.bn1(self.conv1(x)))
        aid = self.aid1(x) if self.training else None
        x = self.head(F.relu(self.conv2(x)).mean((2, 3)))
        return (x, aid) if self.training else x


class Asked(Insisting):
    """Calls them if a flag asks for it."""

    def forward(self, x: Tensor) -> object:
        if not self.with_aids:
            x = F.relu(self.bn1(self.conv1(x)))
            return self.head(F.relu(self.conv2(x)).mean((2, 3)))
        return super().forward(x)


def cut(network: nn.Module, removed: dict[str, list[int]]):
    torch.manual_seed(0)
    model = network.eval()
    pruned = without(model, IMAGES[:1], removed)
    logits = pruned(IMAGES)
    random = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    dropped = drop_unreached(pruned, model, IMAGES[:1])
    assert torch.equal(torch.get_rng_state(), random)
    assert not pruned.training
    assert torch.equal(pruned(IMAGES), logits)
    for name, tensor in pruned.state_dict().items():
        assert torch.equal(tensor, before[name])
    return pruned, dropped


def step(network: nn.Module) -> Tensor:
    """One step of training: all parameters that the logits depend on change."""
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    outputs = network(IMAGES)
    outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
    F.cross_entropy(outputs, torch.tensor([0, 1, 2, 3])).backward()
    before = network.head.weight.clone()
    optimiser.step()
    assert not torch.equal(network.head.weight, before)
    return outputs


def test_heads_of_streams_that_were_cut_are_dropped_with_the_flag_that_asks_for_them():
    pruned, dropped = cut(Aided(), {"conv1": [0, 4], "conv2": [1]})
    assert dropped.settings == {"aid1": None, "aid2": None, "with_aids": False}
    assert dropped.modules == ["aid1", "aid2"]
    assert dropped.reason is None
    assert pruned.scaled
    assert pruned.spare is not None
    assert "aid1.2.weight" not in pruned.state_dict()
    step(pruned)
    again = without(pruned.eval(), IMAGES[:1], {"conv1": [0]})
    assert again.conv1.out_channels == 3
    step(again)


def test_a_head_whose_stream_is_whole_stays():
    pruned, dropped = cut(Aided(), {"conv2": [1]})
    assert dropped.settings == {"aid2": None}
    assert pruned.with_aids
    _, aids = pruned.train()(IMAGES)
    assert len(aids) == 1


def test_nothing_is_dropped_where_training_works_or_never_did():
    _, dropped = cut(Aided(), {})
    assert dropped.settings == {}

    class Untrainable(Aided):
        def forward(self, x: Tensor) -> object:
            assert not self.training
            return super().forward(x)

    _, dropped = cut(Untrainable(), {"conv1": [0]})
    assert (dropped.settings, dropped.reason) == ({}, None)


def test_a_flag_without_which_a_head_is_called_all_the_same():
    pruned, dropped = cut(Asked(), {"conv1": [0, 4]})
    assert dropped.settings == {"aid1": None, "with_aids": False}
    step(pruned)


def test_what_cannot_be_trained_is_said_and_left_as_it_is():
    pruned, dropped = cut(Insisting(), {"conv1": [0, 4]})
    assert dropped.settings == {}
    assert dropped.reason == (
        "cannot be trained: in training mode its forward calls aid1, which no image reaches in "
        "eval mode, so that the cut could not be followed there"
    )
    assert pruned.aid1 is not None

    class Noticing(Aided):
        def forward(self, x: Tensor) -> object:
            outputs = super().forward(x)
            return outputs + 1 if self.aid1 is None else outputs

    _, dropped = cut(Noticing(), {"conv1": [0, 4]})
    assert dropped.settings == {}
    assert "calls aid1, which" in dropped.reason


def test_settings_of_another_network():
    with pytest.raises(ValueError, match="the network has no 'aid3' to drop"):
        apply_settings(Aided(), {"aid3": None})
    with pytest.raises(ValueError, match=r"the network has no 'aid9\.flag' to drop"):
        apply_settings(Aided(), {"aid9.flag": False})


@pytest.mark.parametrize(
    ("name", "size", "group", "heads"),
    [
        ("googlenet", 64, "inception4a.branch1.conv", ["aux1"]),
        ("googlenet", 64, "inception3a.branch1.conv", []),
        pytest.param(
            "inception_v3", 299, "Mixed_6e.branch1x1.conv", ["AuxLogits"], marks=pytest.mark.slow
        ),
    ],
)
def test_torchvision(name, size, group, heads):
    model = getattr(torchvision.models, name)(
        num_classes=5, aux_logits=True, init_weights=False
    ).eval()
    images = torch.randn(2, 3, size, size)
    pruned = without(model, images[:1], {group: [0, 1, 2]})
    assert drop_unreached(pruned, model, images[:1]).modules == heads
    outputs = pruned.train()(images)
    logits = outputs if isinstance(outputs, Tensor) else outputs[0]
    assert logits.shape == (2, 5)
    assert isinstance(outputs, Tensor) == (name == "inception_v3")
