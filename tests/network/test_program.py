"""A network as a program: the same outputs and weights, and steps that can be cut."""

import pickle

import pytest
import torch
from mechanisms import PaddedShortcut, Shuffle
from mechanisms_over_channels import GlobalResponseNorm, ManualNorm, SpatialGate
from plain import Plain, images, lively
from saved_run import files
from torch import Tensor, nn
from torch.nn import functional as F

from shapray import load_pruned
from shapray.network.cuttable import as_program, cuttable
from shapray.network.find import find_groups
from shapray.network.moved import Moved
from shapray.network.padded import Padded
from shapray.network.program import is_program, program
from shapray.network.reduced import Reduced
from shapray.network.surgery import prune_model
from shapray.pruning.saved import weights_bytes
from shapray.storage.run_directory import RunDirectory

IMAGES = images(2)


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        (PaddedShortcut, [Padded]),
        (Shuffle, [Moved] * 3),
        (SpatialGate, [Reduced] * 2),
        (GlobalResponseNorm, [Reduced]),
        (ManualNorm, [Reduced] * 2),
        (Plain, []),
    ],
)
def test_a_program_computes_the_same_from_the_same_weights(kind, steps):
    model = lively(kind())
    found = program(model, IMAGES[:1])
    torch.testing.assert_close(found(IMAGES), model(IMAGES))
    assert set(found.state_dict()) == set(model.state_dict())
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in found.state_dict().items())
    assert [type(m) for m in found.modules() if isinstance(m, Moved | Padded | Reduced)] == steps
    assert is_program(found) == bool(steps)
    assert not is_program(model)  # it is left as it is


@pytest.mark.parametrize("kind", [PaddedShortcut, Shuffle, SpatialGate, GlobalResponseNorm])
def test_a_program_goes_to_workers_as_it_is(kind):
    found, groups = cuttable(lively(kind()), IMAGES[:1])
    assert is_program(found)
    arrived = pickle.loads(pickle.dumps(found))
    assert torch.equal(arrived(IMAGES.clone()), found(IMAGES.clone()))
    assert find_groups(arrived, IMAGES[:1]) == groups


def test_layers_that_only_training_calls_stay():
    class Aided(Shuffle):
        def __init__(self) -> None:
            super().__init__()
            self.aid = nn.Linear(4, 3)

    assert "aid.weight" in program(lively(Aided()), IMAGES[:1]).state_dict()


class Branching(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -1e9 else x


class Counting(Plain):
    """Its forward does something else every time."""

    n_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.n_calls += 1
        return super().forward(x) * Counting.n_calls


@pytest.mark.parametrize("kind", [Branching, Counting])
def test_there_is_no_program_of_what_cannot_be_traced(kind):
    model = lively(kind())
    assert program(model, IMAGES[:1]) is None
    with pytest.raises(ValueError, match="can no longer be traced, as it was when"):
        as_program(model, IMAGES[:1])


@pytest.mark.parametrize("dim", [1, -1])
def test_channels_that_are_moved_and_cut(dim):
    x = torch.randn(2, 5, 3, 5)
    step = Moved(torch.tensor([4, 0, 0, 2]), dim, 5)
    assert torch.equal(step(x), x.index_select(dim, torch.tensor([4, 0, 0, 2])))
    stays = torch.tensor([True, False, False, True, True])
    step.cut(stays)
    assert torch.equal(
        step(x[:, stays] if dim == 1 else x[..., stays]),
        x.index_select(dim, torch.tensor([4, 0, 0])),
    )
    step.cut(torch.tensor([False, True, True]))
    assert step.n_channels == 2
    assert step.index.tolist() == [1]


@pytest.mark.parametrize("dim", [1, -1])
def test_channels_of_zeros(dim):
    x = torch.randn(2, 5, 3, 5)
    sides = (0, 0, 0, 0, 2, 1) if dim == 1 else (2, 1)
    assert torch.equal(Padded(2, 1, dim % 4)(x), F.pad(x, sides))
    assert torch.equal(Padded(0, 0, dim % 4)(x), x)


@pytest.mark.parametrize("kind", ["mean", "sum", "amax", "amin"])
def test_what_is_taken_over_those_that_are_kept(kind):
    x = torch.randn(2, 5, 3, 3)
    step, kept = (
        Reduced(kind, (1,), 1, keepdim=True),
        torch.tensor([True, False, True, True, False]),
    )
    stays = kept[:, None, None].expand_as(x)
    torch.testing.assert_close(step.of_kept(x, stays), step(x[:, kept]))
    assert torch.equal(step.of_kept(x, stays & False), torch.zeros(2, 1, 3, 3))


def test_a_run_whose_network_became_a_program_is_read_back(tmp_path):
    model = lively(Shuffle())
    network, groups = cuttable(model, IMAGES[:1])
    removed = {"stem": [0, 3], "last": [1]}
    pruned = prune_model(network, groups, removed)
    run, plan = files({}, factory="mechanisms:Shuffle")
    run["example_shape"] = [1, 3, 8, 8]
    plan["groups"] = {
        group.name: {"n_units": group.n_units, "removed": removed.get(group.name, [])}
        for group in groups
        if group.reason is None
    }
    plan["program"] = True
    store = RunDirectory(str(tmp_path))
    store.publish_json("run.json", run)
    store.publish_json("prune/plan.json", plan)
    store.publish("prune/model.safetensors", weights_bytes(pruned))
    loaded = load_pruned(str(tmp_path))
    assert torch.equal(loaded(IMAGES), pruned(IMAGES))
    assert loaded.branch.in_channels == 1
    F.cross_entropy(loaded.train()(IMAGES), torch.tensor([0, 1])).backward()
    assert loaded.stem.weight.grad is not None
