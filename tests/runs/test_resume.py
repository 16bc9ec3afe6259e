"""The same command again: it does what is missing, and nothing else."""

import json
import math
import shutil
import signal

import pyarrow.parquet as pq
import pytest
from tiny import results, shards, start, wait_for_shards, write_job

from shapray.engine import precision
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import list_shards, publish_shard, shard_path

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run: the output of the job that `write_job` writes."""
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_a_second_run_computes_nothing_again(copied, tmp_path, capsys):
    before = shards(copied)
    assert main([str(write_job(tmp_path)), "prune.ratio=0.3"]) == 0
    assert shards(copied) == before
    assert f"{len(before)} of {len(before)} shards are there already" in capsys.readouterr().out


def test_another_pruning_needs_no_new_scores(tmp_path):
    job = str(write_job(tmp_path, score__groups=["conv1"]))
    assert main([job]) == 0
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


def test_torn_foreign_and_changed_shards_are_computed_again(finished, copied, tmp_path, capsys):
    job, output = str(write_job(tmp_path)), copied
    torn, flipped, foreign = sorted(shards(output))[:3]
    (output / torn).write_bytes((output / torn).read_bytes()[:-20])
    data = bytearray((output / flipped).read_bytes())
    data[len(data) // 3] ^= 0xFF
    (output / flipped).write_bytes(data)
    stranger = RunDirectory(str(output))
    table = pq.read_table(output / foreign)
    publish_shard(stranger, table["group"][0].as_py(), 0, len(table), table, "0" * 64)
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
    job = str(write_job(tmp_path, output=output, score__precision="auto"))
    store = RunDirectory(output)
    monkeypatch.setattr(precision, "MUCH_FASTER", math.inf)  # so bfloat16, whatever is measured
    assert main([job]) == 0
    assert store.read_json("run.json")["precision"] == "bfloat16"
    assert store.read_json("run.json")["job"]["score"]["precision"] == "auto"
    lost, *others = sorted(list_shards(store))
    before = store.read_table(lost)
    store.remove(lost)
    capsys.readouterr()

    monkeypatch.setattr(precision, "MUCH_FASTER", 0.0)  # so float32, if it were measured again
    assert main([job]) == 0
    assert f"{len(others)} of {len(others) + 1} shards are there already" in capsys.readouterr().out
    assert store.read_json("run.json")["precision"] == "bfloat16"
    assert store.read_table(lost).equals(before)
    assert main([job, "score.precision=bfloat16"]) == 0  # the same, said by the user
    assert main([job, "score.precision=float32"]) == 2
    assert "score.precision: bfloat16 there, float32 here" in capsys.readouterr().err
