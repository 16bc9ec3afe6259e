"""A network in two halves: networks whose operations few have, and what a tail costs."""

import brute_force
import numpy as np
import pytest
import torch
from cases import case
from torch import nn
from torch.nn import functional as F

from shapray.config import Score
from shapray.engine.choose import check_split
from shapray.engine.network_game import NetworkSplit
from shapray.engine.trace import fold
from shapray.network.check import check_group
from shapray.network.consumers import mask_consumers
from shapray.network.find import find_groups
from shapray.network.replay import Replay
from shapray.shapley.estimators import estimate

N_IMAGES = 2


class Blocks(nn.Module):
    """A stem, two convolutions whose group `a` is scored, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.a = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 1)
        self.b, self.last = nn.Conv2d(5, 5, 1), nn.Linear(5, 3)

    def between(self, x):
        return F.relu(self.stem(x)), lambda y: self.last(y.mean((2, 3)))

    def gate(self, x):
        return torch.sigmoid(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))))


class GateInPlace(Blocks):
    def forward(self, x):
        x, end = self.between(x)
        return end(x.mul_(self.gate(x)))


class AddInPlace(Blocks):
    def forward(self, x):
        x, end = self.between(x)
        return end(torch.relu_(x.add_(self.b(F.relu(self.a(x))))))


class Broadcast(Blocks):
    def forward(self, x):
        x, end = self.between(x)
        return end(self.b(F.relu(self.a(x.mean((2, 3), keepdim=True)))) + x)


class Where(Blocks):
    def forward(self, x):
        x, end = self.between(x)
        chosen = x.mean(1, keepdim=True) > 0.2
        y = self.b(F.relu(self.a(x)))
        return end(torch.where(chosen, y, 0 * y).masked_fill(~chosen, 0.5))


@pytest.mark.parametrize("kind", [GateInPlace, AddInPlace, Broadcast, Where])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exact_values_are_those_of_the_masked_network(kind, precision):
    model = kind().eval()
    images = torch.randn(N_IMAGES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    group = next(g for g in find_groups(model, images[:1]) if g.name == "a")
    assert (group.reason, check_group(model, group, images, 0)) == (None, None)
    folded = fold(model, images[:1])
    replays = Replay(model, images[:1]), Replay(folded, images[:1])
    assert check_split(NetworkSplit(folded, group, images[:1]), *replays, seed=0) is None
    split = NetworkSplit(folded, group, images[:1], precision=precision)
    labels = torch.tensor([0, 2])
    found = [
        estimate(
            split.game(images[[i]], labels[[i]], "target_logit"), Score(estimator="exact"), [i]
        )[0]
        for i in range(N_IMAGES)
    ]
    for image in range(N_IMAGES):
        values = []
        for kept in brute_force.subsets(group.n_units):
            with torch.no_grad(), mask_consumers(model, group, torch.tensor(kept).bool()):
                values.append(model(images[[image]])[0, labels[image]].item())
        expected = brute_force.shapley(np.array(values))
        atol = 1e-5 if precision == "float32" else 0.03
        np.testing.assert_allclose(found[image].shapley_value, expected, atol=atol)


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
