"""Another cut on the scores of a run: nothing is scored, nothing is started, nothing is lost."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import safetensors.torch
from tiny import write_job

from shapray.again import main
from shapray.driver import progress
from shapray.pruning.evaluate import count_macs
from shapray.pruning.latency import Latency
from shapray.run import main as run
from shapray.worker import cutter

pytestmark = [pytest.mark.usefixtures("in_process"), pytest.mark.usefixtures("no_ray")]

QUICK = ("prune.curve=[]", "prune.criteria=[]", "prune.export=[]")


def files(folder: Path) -> dict[str, bytes]:
    """All of a run directory."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def refused(capsys, folder: Path, *arguments: str) -> str:
    """The one message of a command that has to stop with status 2 and write nothing."""
    before = files(folder)
    capsys.readouterr()
    assert main([str(folder), *arguments]) == 2
    assert files(folder) == before
    message = capsys.readouterr().err
    assert message.count("shapray: ") == 1
    assert "Traceback" not in message
    return message


def metrics_of(folder: Path, name: str) -> dict:
    return json.loads((folder / "prune" / name / "metrics.json").read_text())


@pytest.mark.slow
def test_cuts_of_other_sizes_and_criteria_stand_beside_each_other(copied, capsys):
    before = files(copied)
    assert main([str(copied), "prune.macs=0.5", *QUICK, "--name", "half"]) == 0
    own = ["prune.macs=0.5", "prune.rank_by=l1_norm", "prune.repair=[]"]
    assert main([str(copied), *own, *QUICK, "--name", "l1"]) == 0
    capsys.readouterr()
    assert main([str(copied), "prune.ratio=0.2", *QUICK, "--name", "half"]) == 0
    assert not ray.is_initialized()

    after = files(copied)
    assert after.pop("report.html") != before.pop("report.html")  # it has all cuts
    assert before.items() <= after.items()  # the run's own, its scores and run.json among them
    half, l1, second = (metrics_of(copied, name) for name in ("half", "l1", "half-2"))
    for found in (half, l1):
        assert 0.4 < found["after"]["multiply_adds"] / found["before"]["multiply_adds"] <= 0.5
    assert half["target"] == {"macs": 0.5}
    assert second["target"] == {"ratio": 0.2}
    assert (half["criterion"], half["repair"]) == ("shapley", ["least_squares"])
    assert (l1["criterion"], l1["repair"]) == ("l1_norm", [])
    assert half["after"]["loss"] < half["cut"]["loss"]
    assert l1["after"] == l1["cut"]
    for name, found in (("half", half), ("l1", l1), ("half-2", second)):
        saved = safetensors.torch.load_file(copied / "prune" / name / "model.safetensors")
        n_removed = json.loads((copied / "prune" / name / "plan.json").read_text())["groups"]
        assert sum(len(g["removed"]) for g in n_removed.values()) == found["after"]["n_removed"]
        n_weights = sum(
            v.numel() for k, v in saved.items() if "running" not in k and "num" not in k
        )
        assert n_weights == found["after"]["parameters"]
        assert (copied / "prune" / name / "curve.parquet").exists()
        facts = json.loads((copied / "prune" / name / "cut.json").read_text())
        assert facts["networks"] == (2 if name == "l1" else 3)
    # the table of all cuts is printed after each
    said = capsys.readouterr().out
    for words in ("the run's own", "half", "half-2", "l1", "l1_norm", "least_squares", "none"):
        assert words in said


def test_a_name_is_made_of_what_was_asked_for(copied):
    assert main([str(copied), "prune.macs=0.6", *QUICK]) == 0
    assert (copied / "prune/macs=0.6,curve=,criteria=,export=/metrics.json").exists()


def test_the_same_cut_again_is_the_runs_own_to_the_bit(copied):
    assert main([str(copied), *QUICK, "--name", "again"]) == 0
    for name in ("model.safetensors", "plan.json"):
        again, before = ((copied / "prune" / folder / name) for folder in ("again", "."))
        assert again.read_bytes() == before.read_bytes(), name


def test_a_distillation_shows_how_far_it_is(copied, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    asked = ["prune.repair=[distill]", "prune.distill.steps=24", "prune.criteria=[l1_norm]"]
    assert main([str(copied), *asked, "prune.curve=[]", "prune.export=[]", "--name", "it"]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if ": distill: step " in line]
    assert all(line.startswith("evaluate: ") for line in said)
    for cut in ("shapley", "l1_norm"):
        steps = [line for line in said if f", {cut}" in line]
        assert "distill: step 0 of 24, loss 0." in steps[0]
        assert "distill: step 24 of 24, loss 0." in steps[-1]
        assert len(steps) > 3


def test_another_criterion_leaves_the_scores_as_they_are(copied):
    before = (copied / "scores.parquet").read_bytes()
    asked = ["prune.criteria=[l2_norm]", "prune.curve=[]", "prune.export=[]", "prune.repair=[]"]
    assert main([str(copied), *asked, "prune.allocation=global", "--name", "l2"]) == 0
    assert (copied / "scores.parquet").read_bytes() == before
    found = metrics_of(copied, "l2")
    assert [rival["criterion"] for rival in found["criteria"]] == ["l2_norm"]
    assert found["criteria"][0]["multiply_adds"] <= 1.005 * found["after"]["multiply_adds"]
    low, high = (found["criteria"][0]["behind"][key] for key in ("low", "high"))
    assert low <= found["criteria"][0]["behind"]["difference"] <= high
    assert not (copied / "prune/l2/group_losses.parquet").exists()


def test_how_many_images_are_used_is_said_where_they_do_not_all_fit(copied, capsys, monkeypatch):
    monkeypatch.setattr(cutter, "images_that_fit", lambda *_: 9)
    asked = ["prune.rank_by=obs", "prune.macs=0.6", "prune.repair=[batchnorm, least_squares]"]
    assert main([str(copied), *asked, *QUICK]) == 0
    said = capsys.readouterr().out
    assert "criterion obs: 9 of 24 images are used" in said
    assert "least_squares: fitted on 9 of 24 images" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune.rank=mean"], ["prune.rank: unknown key", "rank_by"]),
        (["prune.rank_by=magic"], ["prune.rank_by.0: expected auto, mean", "l1_norm", "magic"]),
        (["prune.repair=[magic]"], ["prune.repair.0: expected one of", "least_squares", "magic"]),
        (
            ["prune.repair=[least_squares,batchnorm]"],
            ["prune", "done in the order ['batchnorm', 'least_squares']"],
        ),
        (["prune={macs: 0.5, ratio: 0.5}"], ["macs: 0.5 and ratio: 0.5; one of them"]),
        (
            ["prune.macs=0.3", "prune.min_units=16", "prune.protect=[conv1]"],
            ["prune.macs: 0.3 cannot be met", "min_units 16", "['conv1']", "the nearest is 0."],
        ),
        (
            ["prune.ratio=0.9", "prune.round_to=8", "prune.curve=[]"],
            ["prune.ratio: 0.9 cannot be met", "round_to 8", "the nearest is 0.77"],
        ),
        (["prune.ratio=0.02", "prune.min_units=60"], ["prune.ratio: 0.5 cannot be met"]),  # curve
        (["output=elsewhere"], ["output=elsewhere: a cut stays beside the scores", "--name"]),
        (["--name", "../x"], ["--name", "'../x'"]),
        (["score.seed=1"], ["score.seed", "0 there, 1 here"]),
        (["prune.min_accuracy=1.0"], ["prune.min_accuracy"]),
    ],
)
def test_wrong_values_are_refused_before_anything_is_written(copied, capsys, arguments, words):
    message = refused(capsys, copied, *arguments)
    for part in words:
        assert part in message


def test_a_size_that_is_nearest_can_be_met(copied, capsys):
    bounds = ["prune.min_units=16", "prune.protect=[conv1]", *QUICK, "prune.repair=[]"]
    message = refused(capsys, copied, "prune.macs=0.1", *bounds)
    nearest = message.strip().rpartition("the nearest is ")[2]
    assert main([str(copied), f"prune.macs={nearest}", *bounds, "prune.allocation=global"]) == 0


def test_a_latency_is_met(copied, capsys, monkeypatch):
    """By a clock that counts multiply-adds, with something that no cut saves."""

    def counted(networks, example, batch, device):
        macs = {name: count_macs(network, example)[1] for name, network in networks.items()}
        passes = {name: (0.1 * macs["whole"] + of_it,) for name, of_it in macs.items()}
        return {name: Latency(batch, seconds, 1, "counted") for name, seconds in passes.items()}

    monkeypatch.setattr(cutter, "compared_latency", counted)
    message = refused(capsys, copied, "prune.latency=0.05", *QUICK)
    assert "prune.latency: 0.05 cannot be met: with all units gone that may go" in message
    assert main([str(copied), "prune.latency=0.5", *QUICK, "--name", "fast"]) == 0
    found = metrics_of(copied, "fast")
    before, after = (found[name]["latency"][0]["median_ms"] for name in ("before", "after"))
    assert after / before == pytest.approx(0.5, rel=0.02)


def test_a_cut_that_is_stopped_says_what_is_kept(copied, capsys, monkeypatch):
    """By Ctrl-C while the cut is measured; then it is made."""
    before, measure = files(copied), cutter.Cutter.evaluate

    def interrupt(self, task, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(cutter.Cutter, "evaluate", interrupt)
    asked = [str(copied), "prune.rank_by=l1_norm", *QUICK, "--name", "l1"]
    assert main(asked) == 130
    said = capsys.readouterr().err
    assert said == (
        "shapray: stopped; the scores and earlier cuts are as they were, and the same command "
        "makes this cut, with the losses of groups that are measured already\n"
    )
    assert before.items() <= files(copied).items()
    monkeypatch.setattr(cutter.Cutter, "evaluate", measure)
    monkeypatch.delattr(cutter.Cutter, "losses")  # they are not measured again
    assert main(asked) == 0
    assert metrics_of(copied, "l1")["criterion"] == "l1_norm"


def test_a_folder_without_scores(copied, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "run.json: no such file" in refused(capsys, tmp_path / "empty")
    (copied / "scores.parquet").unlink()
    assert "scores.parquet: no such file" in refused(capsys, copied)


def test_scores_that_lack_a_group_of_the_job(tmp_path, capsys):
    job = write_job(tmp_path, score__groups=["fc1"])
    assert run([str(job), *QUICK]) == 0
    table = pq.read_table(tmp_path / "out/scores.parquet")
    assert set(table["group"].to_pylist()) == {"fc1"}
    message = refused(capsys, tmp_path / "out", "score.groups=[fc1,conv3]")
    assert "conv3" in message
