"""Operations that few networks have: the exact values are still those of the whole network."""

import brute_force
import numpy as np
import pytest
import torch
from tiny import write_job
from torch import nn
from torch.nn import functional as F

from shapray.config import Score, load_job
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import plan
from shapray.engine.check import check_split
from shapray.engine.fold import fold
from shapray.engine.network_game import NetworkSplit
from shapray.network.check import check_group
from shapray.network.consumers import mask_consumers
from shapray.network.find import find_groups
from shapray.shapley.estimators import estimate
from shapray.storage.run_directory import RunDirectory

N_IMAGES = 2


class Blocks(nn.Module):
    """A stem, two convolutions whose group `a` is scored, and a classifier."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem, self.a = nn.Conv2d(3, 5, 1), nn.Conv2d(5, width, 1)
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
    assert check_split(NetworkSplit(folded, group, images[:1]), model, images, 0) is None
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


class Glued(Blocks):
    """Two channels of `a` become one before anybody reads them."""

    def __init__(self) -> None:
        super().__init__(width=10)

    def forward(self, x):
        x, end = self.between(x)
        return end(self.b(F.glu(self.a(x), 1)))


def test_a_group_that_cannot_be_read_leaves_the_others():
    groups = {g.name: g.reason for g in find_groups(Glued().eval(), torch.zeros(1, 3, 4, 4))}
    assert groups["stem"] is None
    assert groups["a"] is not None


class Revived(nn.Module):
    """Unit 0 of `first` is silent until unit 1 goes; its consumers are called by keyword, and
    torch.fx cannot trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        assert float(x.sum()) > -1e9
        x = F.relu(self.first(x))
        x = F.relu(x + self.second(input=x))
        return self.last(input=x.mean((2, 3)))


def test_what_is_read_by_keyword_can_make_a_group_deep():
    group = find_groups(Revived().eval(), torch.zeros(1, 3, 4, 4))[0]
    assert group.name == "first"
    assert not group.flat


class Patches(nn.Module):
    """Two halves of an image as two rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.stem = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 5, 1)
        self.a, self.b, self.last = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1), nn.Linear(5, 10)

    def forward(self, x):
        x = F.relu(self.stem(F.relu(self.first(x))))
        n, c, h, w = x.shape
        x = x.reshape(n, c, 2, h // 2, w).transpose(1, 2).flatten(0, 1)
        x = self.b(F.relu(self.a(x)))
        return self.last(x.mean((2, 3)).unflatten(0, (n, 2)).mean(1))


@pytest.mark.filterwarnings("ignore:.*every coalition runs the whole network")
def test_a_group_whose_tail_does_not_run_is_listed_and_the_others_are_scored(tmp_path):
    job = load_job(
        write_job(
            tmp_path,
            model={"factory": "test_odd_networks:Patches"},
            output=f"memory://{tmp_path.name}",
        )
    )
    planned = plan(open_inputs(job, RunDirectory(job.output)))
    reasons = {group.name: group.reason for group in planned.groups}
    assert reasons["a"] is not None
    assert reasons["a"].startswith("its tail does not run: ")
    assert reasons["first"] is None
