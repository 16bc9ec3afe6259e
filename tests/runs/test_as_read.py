"""A whole run on a network that is not plain: what it leaves is the user's own, in plain layers."""

import json

import pyarrow.parquet as pq
import pytest
import timm.layers
import torch
from networks import randomise
from tiny import DIGITS, SCORED, digits_with, write_job
from torch import nn
from torch.nn.utils import parametrizations

from shapray.pruning.saved import load_pruned
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("in_process")


class Unplain(nn.Module):
    """One logit among other outputs, of layers that hold their constants in other forms."""

    def __init__(self) -> None:
        super().__init__()
        self.first = timm.layers.ScaledStdConv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = parametrizations.weight_norm(nn.Conv2d(6, 5, 3))
        self.fc = nn.Linear(5, 1)

    def forward(self, x):
        x = self.second(self.norm(self.first(x)).relu()).relu().mean((2, 3))
        return {"features": x, "scores": self.fc(x)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of one, as a training with DataParallel leaves it."""
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    state = randomise(Unplain()).state_dict()
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    return str(path)


@pytest.fixture
def parity(tmp_path):
    """Digits, and whether they are odd."""
    digits = pq.read_table(DIGITS)["label"].to_pylist()
    path = digits_with(tmp_path, label=[digit % 2 for digit in digits])
    return {"data__calibration__path": path, "data__evaluation__path": path}


def test_its_scores_its_notes_and_its_network(weights, parity, tmp_path, capsys):
    model = {"factory": f"{__name__}:Unplain", "weights": weights, "output": "scores"}
    job = write_job(tmp_path, model=model, **parity, prune__ratio=0.3, prune__random_seeds=[0])
    assert main([str(job), *SCORED, "prune.export=[pt2]"]) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "out"
    notes = json.loads((out / "run.json").read_text())["model_notes"]
    for words in ("second.weight", "ScaledStdConv2d -> Conv2d: first", "scores is read", "-z/2"):
        assert any(words in note for note in notes), words
    assert all(note in printed.replace("\n", " ") for note in notes)
    store = RunDirectory(str(out))
    assert set(store.read_table("scores.parquet")["group"].to_pylist()) == {"first", "second"}
    assert set(store.read_table("class_scores.parquet")["label"].to_pylist()) == {0, 1}

    network, images = load_pruned(str(out)), torch.randn(3, 1, 8, 8)
    assert type(network) is Unplain
    assert type(network.first) is type(network.second) is nn.Conv2d
    outputs = network(images)
    assert outputs["features"].shape[1] == network.fc.in_features
    program = torch.export.load(out / "prune/model.pt2").module()
    torch.testing.assert_close(program(images), outputs["scores"])
    assert main([str(job), *SCORED, "prune.export=[pt2]"]) == 0  # the same job, once more


def test_another_output_is_another_job(weights, parity, tmp_path, capsys):
    model = {"factory": f"{__name__}:Unplain", "weights": weights, "output": "scores"}
    job = write_job(tmp_path, model=model, **parity, prune__ratio=0.3)
    assert main([str(job), *SCORED, "prune.random_seeds=[]"]) == 0
    assert main([str(job), *SCORED, "model.output=features"]) == 2
    assert "model.output: scores there, features here" in capsys.readouterr().err
