"""The check of a split network, and what a group that fails it means for a plan."""

import copy

import pytest
import torch
from cases import case
from tiny import write_job
from torch import nn
from torch.nn import functional as F

from shapray.config import load_job
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import plan
from shapray.engine.choose import check_split
from shapray.engine.network_game import NetworkSplit
from shapray.network.replay import Replay
from shapray.storage.run_directory import RunDirectory


@pytest.mark.parametrize("way", ["masked", "summed"])
def test_a_tail_that_computes_something_else_is_named_with_its_error(way):
    network = case("digits")
    split = NetworkSplit(network.folded, network.group("conv3"), network.example)
    replays = Replay(network.model, network.example), Replay(network.folded, network.example)
    assert check_split(split, *replays, seed=0) is None
    tail = getattr(split, f"{way}_tail")
    tail.graph = copy.deepcopy(tail.graph)  # the network's weights are left alone
    next(iter(tail.graph.parameters())).data *= 1.01
    found = check_split(split, *replays, seed=0)
    assert found is not None
    assert "tail and the network differ: relative error 0.0" in found


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
            model={"factory": f"{__name__}:Patches"},
            output=f"memory://{tmp_path.name}",
        )
    )
    planned = plan(open_inputs(job, RunDirectory(job.output)))
    reasons = {group.name: group.reason for group in planned.groups}
    assert reasons["a"] is not None
    assert reasons["a"].startswith("what lies behind it does not run")
    assert reasons["first"] is None
