"""What cannot be replaced, beside every unit removed and all weights fitted again."""

import numpy as np
import pytest
import torch
from plain import Plain, groups_by_name, images, lively
from slow_fit import outputs_of, penalty, read_and_put_out, rows_of
from torch import Tensor, nn
from torch.nn import functional as F

from shapray.engine.network_game import PROCESS_BYTES
from shapray.pruning.criteria import criterion


def growth(model: nn.Module, name: str, x: Tensor, gone: list[int]) -> float:
    """The least error of all consumers' outputs, with the pull to the present weights, that there
    is without some units."""
    total = 0.0
    for consumer in groups_by_name(model)[name].consumers:
        layer = model.get_submodule(consumer.module)
        read, put_out = read_and_put_out(model, layer, x)
        [rows], [outputs] = rows_of(layer, read), outputs_of(layer, put_out)
        weights = layer.weight.detach().double().flatten(1).numpy().T  # (features, out)
        strength = np.sqrt(penalty(rows))
        if layer.bias is not None:  # the best bias leaves what differs from the means
            rows, outputs = rows - rows.mean(0), outputs - outputs.mean(0)
        units = np.repeat(consumer.unit_of_channel, len(weights) // len(consumer.unit_of_channel))
        stay = ~np.isin(units, gone)
        above = np.vstack([rows, strength * np.eye(rows.shape[1])])
        wanted = np.vstack([outputs, strength * weights])
        fit = np.linalg.lstsq(above[:, stay], wanted, rcond=None)[0]
        total += float(((above[:, stay] @ fit - wanted) ** 2).sum())
    return total


class Forked(nn.Module):
    """Two layers read the first one, of which one has a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.left, self.right = nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, 1, stride=2, bias=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        left, right = self.left(x).relu().mean((2, 3)), self.right(x).relu().mean((2, 3))
        return self.head(torch.cat([left, right], 1))


@pytest.mark.parametrize(
    ("build", "name"), [(Plain, "conv1"), (Plain, "conv2"), (Plain, "fc1"), (Forked, "stem")]
)
def test_each_unit_to_go_is_the_one_that_the_rest_replaces_best(build, name):
    model, x = lively(build()), images(30)
    group = groups_by_name(model)[name]
    scores = criterion("obs", model, [group], x, None)[name]
    gone, before, dearest = [], 0.0, 0.0
    for unit in np.argsort(scores).tolist():
        costs = {
            other: growth(model, name, x, [*gone, other]) - before
            for other in range(group.n_units)
            if other not in gone
        }
        assert costs[unit] <= min(costs.values()) * (1 + 1e-3) + 1e-9
        dearest = max(dearest, costs[unit])
        assert scores[unit] == pytest.approx(dearest, rel=1e-3, abs=1e-6)
        gone.append(unit)
        before += costs[unit]


def test_of_two_units_that_say_the_same_one_is_spare_and_the_other_is_not():
    model, x = lively(Plain()), images(40)
    for part in (model.conv1.weight, model.conv1.bias, model.bn1.weight, model.bn1.bias):
        part.data[3] = part.data[1]
    for part in (model.bn1.running_mean, model.bn1.running_var):
        part[3] = part[1]
    model.conv2.weight.data[:, [1, 3]] *= 5  # both would be kept by what they weigh
    group = groups_by_name(model)["conv1"]
    order = criterion("obs", model, [group], x, None)["conv1"].argsort().tolist()
    by_norm = criterion("taylor", model, [group], x, None)["conv1"].argsort().tolist()
    assert order[0] in (1, 3)
    assert order[-1] in (1, 3)
    assert by_norm[0] not in (1, 3)


def test_units_that_are_never_read_go_first():
    model, x = lively(Plain()), images(20)
    model.conv2.weight.data[:, 2] = 0
    group = groups_by_name(model)["conv1"]
    scores = criterion("obs", model, [group], x, None)["conv1"]
    assert scores.argmin() == 2
    assert len(set(scores)) == group.n_units


def test_what_it_cannot_say_anything_of():
    class Twice(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn1(self.conv1(x)).relu()
            y = F.relu(self.conv2(y)) + F.relu(self.conv2(y.flip(3)))
            return self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(y, 2).flatten(1))))

    model = lively(Twice())
    group = groups_by_name(model)["conv1"]
    with pytest.raises(ValueError, match=r"obs, group conv1: conv2: it is called 2 times"):
        criterion("obs", model, [group], images(), None)
    model = lively(Plain())
    group = groups_by_name(model)["conv1"]
    words = r"conv1: conv2 reads 45 features; what the group needs takes 64.8 kB, and 60 kB of"
    with pytest.raises(ValueError, match=words):
        criterion("obs", model, [group], images(), None, memory=PROCESS_BYTES + 100_000)
