"""The same command again: it does what is missing, and nothing else."""

import json
import math
import shutil
import signal

import pyarrow.parquet as pq
import pytest
from tiny import SCORED, results, shards, start, wait_for_shards, write_job

from shapray.engine import precision
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import list_shards, publish_shard, shard_path
from shapray.worker.cutter import Cutter

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run: the output of the job that `write_job` writes."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_a_second_run_computes_nothing_again(copied, tmp_path, capsys):
    before = shards(copied)
    assert main([str(write_job(tmp_path)), "prune.ratio=0.3", *SCORED]) == 0
    assert shards(copied) == before
    assert f"{len(before)} of {len(before)} shards are there already" in capsys.readouterr().out


def test_another_pruning_needs_no_new_scores(tmp_path):
    job = str(write_job(tmp_path, score__groups=["conv1"]))
    assert main([job, *SCORED]) == 0
    before = shards(tmp_path / "out")
    assert main([job, "prune.ratio=0.5", "prune.curve=[]", "prune.random_seeds=[]"]) == 0
    assert shards(tmp_path / "out") == before
    plan = json.loads((tmp_path / "out/prune/plan.json").read_text())["groups"]
    assert len(plan["conv1"]["removed"]) == 16
    curve = pq.read_table(tmp_path / "out/prune/curve.parquet").to_pylist()
    assert [(row["criterion"], row["repair"]) for row in curve] == [
        ("whole", "none"),
        ("shapley", "none"),
        ("shapley", "least_squares"),
    ]


def failing_for(method, names):
    """A method of the cutter's that fails for tasks of some names, and notes the others'."""
    done = []

    def attempted(self, task):
        name = getattr(task, "criterion", None) or task.group
        if name in names:
            raise RuntimeError(f"no {name} today")
        done.append(name)
        return method(self, task)

    return attempted, done


def test_criteria_and_losses_are_computed_once(tmp_path, monkeypatch, capsys):
    job, output = write_job(tmp_path, score__groups=["conv3", "fc1"]), tmp_path / "out"
    quick = ["prune.curve=[]", "prune.random_seeds=[0]", "prune.export=[]"]
    command = [str(job), *quick, "prune.criteria=[l2_norm, apoz, random]"]
    find, measure = Cutter.criterion, Cutter.losses

    def run(status, criteria=(), groups=()):
        criterion, found = failing_for(find, criteria)
        losses, measured = failing_for(measure, groups)
        monkeypatch.setattr(Cutter, "criterion", criterion)
        monkeypatch.setattr(Cutter, "losses", losses)
        assert main(command) == status
        return found, measured

    assert run(3, criteria=["apoz"]) == (["l2_norm"], [])
    assert "stage criterion: 1 task failed" in capsys.readouterr().err
    assert run(3, groups=["fc1"]) == (["apoz"], ["conv3"])
    assert "the same command does only the rest" in capsys.readouterr().err
    assert run(0) == ([], ["fc1"])
    before, metrics = results(output), (output / "prune/group_losses.parquet").read_bytes()
    assert run(0) == ([], [])
    assert results(output) == before
    assert (output / "prune/group_losses.parquet").read_bytes() == metrics
    assert before["scores.parquet"].column_names[-2:] == ["l2_norm", "apoz"]

    command.append("prune.rank_by=apoz")  # the same orders; its rival is another one
    assert run(0) == ([], [])
    command.append("cluster.memory_per_worker=3GiB")  # it may bound the images that are used
    found, measured = run(0)
    assert sorted(found) == ["apoz", "l2_norm"]
    assert sorted(measured) == ["conv3", "fc1"]


def test_criteria_of_other_units_are_not_kept(tmp_path):
    job, asked = str(write_job(tmp_path)), ["prune.criteria=[l2_norm]", "prune.allocation=global"]
    quick = ["prune.curve=[]", "prune.export=[]", "prune.repair=[]", *asked]
    for groups in ("[conv3]", "[conv3, fc1]", "[fc1]"):
        assert main([job, f"score.groups={groups}", *quick]) == 0
        scores = pq.read_table(tmp_path / "out/scores.parquet").to_pandas()
        norms = scores.groupby("group")["l2_norm"].agg("min")
        assert (norms > 0).all()


def test_an_evaluation_that_fails_is_said_to_begin_anew(tmp_path, monkeypatch, capsys):
    job = write_job(tmp_path, score__groups=["conv3"], prune__export=[])
    monkeypatch.setattr(Cutter, "evaluate", lambda self, task: 1 / 0)
    assert main([str(job), "prune.allocation=global"]) == 3
    said = capsys.readouterr().err
    assert "the same command does this stage anew" in said
    assert "only the rest" not in said


def test_torn_foreign_and_changed_shards_are_computed_again(finished, copied, tmp_path, capsys):
    job, output = str(write_job(tmp_path)), copied
    torn, flipped, foreign = sorted(shards(output))[:3]
    (output / torn).write_bytes((output / torn).read_bytes()[:-20])
    data = bytearray((output / flipped).read_bytes())
    for place in range(len(data) // 3, len(data) // 3 + 32):  # a single one may mean nothing
        data[place] ^= 0xFF
    (output / flipped).write_bytes(data)
    stranger = RunDirectory(str(output))
    table = pq.read_table(output / foreign)
    publish_shard(stranger, table["group"][0].as_py(), 0, len(table), table, "0" * 64, "")
    other = shard_path(table["group"][0].as_py(), 0, len(table))
    untouched = {k: v for k, v in shards(output).items() if k not in {torn, flipped, other}}

    assert main([job]) == 0
    assert results(output) == results(finished)
    assert untouched.items() <= shards(output).items()
    printed = capsys.readouterr().out
    for path in {torn, flipped, other}:
        assert f"{path} is computed again" in printed


@pytest.mark.cluster
def test_a_killed_run_goes_on_where_it_was(finished, tmp_path):
    job, output = write_job(tmp_path), tmp_path / "out"
    process = start(job)
    wait_for_shards(output, 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = shards(output)
    assert len(there) < len(shards(finished)), "it was done before it was killed"
    assert not (output / "scores.parquet").exists()

    assert main([str(job)]) == 0
    assert there.items() <= shards(output).items()
    assert results(output) == results(finished)


def test_a_measured_precision_is_recorded_and_kept(tmp_path, monkeypatch, capsys):
    output = f"memory://{tmp_path.name}"
    job = write_job(
        tmp_path,
        output=output,
        score={"precision": "auto", "groups": ["conv3"], "permutations": 2},
        data__calibration__limit=8,
    )
    command = [str(job), *SCORED]
    store = RunDirectory(output)
    monkeypatch.setattr(precision, "MUCH_FASTER", math.inf)  # so bfloat16, whatever is measured
    assert main(command) == 0
    assert store.read_json("run.json")["precision"] == "bfloat16"
    assert store.read_json("run.json")["job"]["score"]["precision"] == "auto"
    lost, *others = sorted(list_shards(store))
    before = store.read_table(lost)
    store.remove(lost)
    capsys.readouterr()

    monkeypatch.setattr(precision, "MUCH_FASTER", 0.0)  # so float32, if it were measured again
    assert main(command) == 0
    assert f"{len(others)} of {len(others) + 1} shards are there already" in capsys.readouterr().out
    assert store.read_json("run.json")["precision"] == "bfloat16"
    assert store.read_table(lost).equals(before)
    assert main([*command, "score.precision=bfloat16"]) == 0  # the same, said by the user
    assert main([*command, "score.precision=float32"]) == 2
    assert "score.precision: bfloat16 there, float32 here" in capsys.readouterr().err
