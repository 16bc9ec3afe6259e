"""Whole runs on real digits: the tables, what stops them and what they do after."""

import json
import os
import signal
import subprocess
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from tiny import (
    DIGITS,
    TABLES,
    actors,
    digits_with,
    local_ray,
    results,
    shards,
    start,
    wait_for_shards,
    write_job,
)

from shapray.config import load_job
from shapray.inputs.images import open_images
from shapray.pruning.saved import load_pruned
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import publish_shard, shard_path

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module", autouse=True)
def cluster():
    with local_ray(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def finished(cluster, tmp_path_factory):
    """The run directory of an undisturbed run with two workers."""
    folder = tmp_path_factory.mktemp("finished")
    assert main([str(write_job(folder))]) == 0
    return folder / "out"


# ---- what a run leaves -----------------------------------------------------------------------


def test_every_image_of_every_group_is_efficient(finished):
    n_images = {}
    for path in finished.glob("shards/*/*.parquet"):
        for row in pq.read_table(path).to_pylist():
            gain = row["value_all"] - row["value_none"]
            assert sum(row["shapley_value"]) == pytest.approx(gain, abs=1e-4)
            assert row["n_active"] == sum(row["active"])
            if row["estimator"] == "exact":
                assert set(row["standard_error"]) == {0.0}
                assert row["n_evaluations"] == 2 ** row["n_active"]
            n_images[row["group"]] = n_images.get(row["group"], 0) + 1
    groups = pq.read_table(finished / "groups.parquet").to_pylist()
    scored = {row["group"] for row in groups if row["status"] == "scored"}
    assert n_images == dict.fromkeys(scored, 24)
    assert all(row["tail_macs"] > 0 for row in groups if row["status"] == "scored")
    excluded = [row for row in groups if row["status"] == "excluded"]
    assert [row["group"] for row in excluded] == ["fc2"]
    assert "outputs" in excluded[0]["reason"]


def test_the_scores_are_the_means_of_the_shards(finished):
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    for group, rows in scores.groupby("group"):
        values = [
            row["shapley_value"]
            for path in sorted((finished / "shards" / f"group={group}").iterdir())
            for row in pq.read_table(path).to_pylist()
        ]
        np.testing.assert_allclose(rows["mean"], np.mean(values, axis=0), atol=1e-9)
    classes = pq.read_table(finished / "class_scores.parquet").to_pandas()
    assert sorted(classes["label"].unique()) == list(range(10))
    assert classes.groupby(["group", "unit"])["n_images"].sum().eq(24).all()


def test_the_network_is_smaller_and_the_figures_are_those_of_the_saved_one(finished):
    plan = json.loads((finished / "prune/plan.json").read_text())["groups"]
    n_units = sum(group["n_units"] for group in plan.values())
    n_removed = sum(len(group["removed"]) for group in plan.values())
    assert n_removed == int(0.3 * n_units)
    assert all(len(group["removed"]) < group["n_units"] for group in plan.values())

    metrics = json.loads((finished / "prune/metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert after["parameters"] < before["parameters"]
    assert after["multiply_adds"] < before["multiply_adds"]
    assert [found["seed"] for found in metrics["random"]] == [0, 1, 2]
    assert {found["n_removed"] for found in metrics["random"]} == {n_removed}
    saved = safetensors.torch.load_file(finished / "prune/model.safetensors")
    network = load_pruned(str(finished))
    assert sum(p.numel() for p in network.parameters()) == after["parameters"]
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())

    curve = pq.read_table(finished / "prune/curve.parquet").to_pylist()
    assert [(row["criterion"], row["ratio"], row["seed"]) for row in curve] == [
        (criterion, ratio, seed)
        for ratio in (0.3, 0.5)
        for criterion, seed in [("shapley", None), ("random", 0), ("random", 1), ("random", 2)]
    ]
    assert curve[0]["top1"] == after["top1"]


def test_run_json_tells_what_was_run(finished):
    record = json.loads((finished / "run.json").read_text())
    assert {stage["state"] for stage in record["stages"].values()} == {"done"}
    assert list(record["stages"]) == ["plan", "score", "aggregate", "prune", "evaluate"]
    assert record["job"]["score"]["permutations"] == 8
    assert record["example_shape"] == [1, 1, 8, 8]
    assert record["n_classes"] == 10
    assert record["failures"] == []


# ---- the same numbers ------------------------------------------------------------------------


def test_one_worker_gives_the_tables_of_two(finished, tmp_path):
    assert main([str(write_job(tmp_path)), "cluster.workers=1"]) == 0
    assert results(tmp_path / "out") == results(finished)


def test_without_ray_the_tables_are_the_same(finished, tmp_path):
    output = f"memory://{tmp_path.name}"
    assert main([str(write_job(tmp_path)), f"output={output}"]) == 0
    store = RunDirectory(output)
    for name in TABLES:
        assert store.read_table(name).equals(pq.read_table(finished / name)), name


def test_a_second_run_computes_nothing_again(finished, capsys):
    before = shards(finished)
    assert main([str(write_job(finished.parent)), "prune.ratio=0.3"]) == 0
    assert shards(finished) == before
    assert f"{len(before)} of {len(before)} shards are there already" in capsys.readouterr().out


def test_another_pruning_needs_no_new_scores(tmp_path, capsys):
    job = str(write_job(tmp_path, score__groups=["conv1"]))
    assert main([job]) == 0
    before = shards(tmp_path / "out")
    assert main([job, "prune.ratio=0.5", "prune.curve=[]", "prune.random_seeds=[]"]) == 0
    assert shards(tmp_path / "out") == before
    plan = json.loads((tmp_path / "out/prune/plan.json").read_text())["groups"]
    assert len(plan["conv1"]["removed"]) == 16
    assert len(pq.read_table(tmp_path / "out/prune/curve.parquet")) == 1


def test_torn_foreign_and_changed_shards_are_computed_again(finished, tmp_path, capsys):
    job = str(write_job(tmp_path))
    assert main([job]) == 0
    output = tmp_path / "out"
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
    capsys.readouterr()

    assert main([job]) == 0
    assert results(output) == results(finished)
    assert untouched.items() <= shards(output).items()
    printed = capsys.readouterr().out
    for path in {torn, flipped, other}:
        assert f"{path} is computed again" in printed


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


def test_killed_workers_leave_no_trace_in_the_tables(finished, tmp_path):
    killed = []

    def kill() -> None:
        for n in (2, 6):
            wait_for_shards(tmp_path / "out", n)
            process = actors()[0]
            process.kill()
            killed.append(process.pid)

    thread = threading.Thread(target=kill)
    thread.start()
    assert main([str(write_job(tmp_path))]) == 0
    thread.join()
    assert len(set(killed)) == 2
    assert results(tmp_path / "out") == results(finished)


def test_a_value_that_is_not_finite_sets_its_task_aside(tmp_path, capsys):
    job = write_job(tmp_path)
    data = load_job(job).data
    images = open_images(data.calibration, data.transform, "data.calibration")
    brightness = images.load(0, len(images)).sum((1, 2, 3))
    brightest = int(brightness.argmax())
    assert brightest >= 4, "the first images are those that groups are checked on"
    limit = float(brightness.sort().values[-2:].mean())

    job = write_job(tmp_path, model={"factory": "tiny:Bright", "kwargs": {"limit": limit}})
    assert main([str(job)]) == 3
    message = capsys.readouterr().err
    assert message.startswith("shapray: stage score: 1 task failed")
    assert f"group first, image {images.ids[brightest]}: the value is" in message
    assert "Traceback" not in message
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["stages"]["score"]["state"] == "failed"
    assert record["stages"]["aggregate"]["state"] == "waiting"
    assert "NonFiniteValue" in record["failures"][0]["traceback"]
    assert len(shards(tmp_path / "out")) == 11  # the other images' stay


# ---- what is wrong with the input --------------------------------------------------------------


def refused(capsys, job: Path, *overrides: str) -> str:
    """The one message of a command that has to stop with status 2 and write nothing."""
    capsys.readouterr()
    assert main([str(job), *overrides]) == 2
    message = capsys.readouterr().err
    assert message.startswith("shapray: ")
    assert message.count("shapray: ") == 1
    assert "Traceback" not in message
    assert not (job.parent / "out").exists()
    return message


def test_an_unknown_key_is_named_by_the_command(tmp_path):
    process = start(write_job(tmp_path), "score.permutation=4")
    _, message = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "score.permutation: unknown key" in message
    assert "permutations" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


def test_a_missing_image_file_is_named_by_the_command(tmp_path):
    process = start(write_job(tmp_path), "data.calibration.path=nowhere.parquet")
    _, message = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "data.calibration" in message
    assert "nowhere.parquet" in message
    assert "Traceback" not in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["score.permutations=many"], ["score.permutations", "many"]),
        (["data.calibration.image_column=picture"], ["data.calibration", "picture", "image"]),
        (["model.weights=none.safetensors"], ["model.weights", "none.safetensors"]),
        (["model.factory=shapray.zoo:resnet99"], ["model.factory", "resnet99"]),
        (["model.factory=nowhere:net"], ["model.factory", "nowhere"]),
        (["model.kwargs={num_classes: 9}"], ["model.weights", "fc2.weight", "(9, 64)", "(10, 64)"]),
        (["data.evaluation.where={split: calibration}"], ["share", "images"]),
        (["data.calibration.label_column=null"], ["score.value", "neg_kl_divergence"]),
        (["data.evaluation.label_column=null"], ["data.evaluation", "labels"]),
        (["score.groups=[layer*]"], ["score.groups", "layer*", "conv1", "fc1"]),
        (["score.groups=[fc2]"], ["score.groups", "fc2: its units are the network's outputs"]),
        (["output=nosuch://bucket/run"], ["output", "nosuch://bucket/run"]),
    ],
)
def test_wrong_input_gets_one_message(tmp_path, capsys, overrides, found):
    message = refused(capsys, write_job(tmp_path), *overrides)
    for part in found:
        assert part in message


def test_a_key_that_is_there_twice(tmp_path, capsys):
    job = write_job(tmp_path)
    job.write_text(job.read_text() + "score: {permutations: 2}\n")
    assert "the key 'score' is there twice" in refused(capsys, job)


def test_labels_out_of_the_networks_range(tmp_path, capsys):
    labels = pq.read_table(DIGITS)["label"].to_numpy() + 3
    path = digits_with(tmp_path, label=labels)
    message = refused(
        capsys, write_job(tmp_path, data__calibration__path=path), "data.calibration.limit=null"
    )
    assert "data.calibration" in message
    assert "0..9" in message


@pytest.mark.parametrize("section", ["calibration", "evaluation"])
def test_an_image_that_does_not_decode_is_named(tmp_path, capsys, section):
    table = pq.read_table(DIGITS)
    images, ids = table["image"].to_pylist(), table["image_id"].to_pylist()
    split = table["split"].to_pylist()
    broken = [i for i, name in enumerate(split) if name == section][7]
    images[broken] = images[broken][:20]
    path = digits_with(tmp_path, image=images)
    job = write_job(tmp_path, **{f"data__{section}__path": path, f"data__{section}__limit": None})
    message = refused(capsys, job)
    assert len(message.splitlines()) == 1
    assert f"'{ids[broken]}'" in message
    assert "decode" in message


def test_exact_with_too_many_active_units(tmp_path, capsys):
    job = write_job(tmp_path, score__groups=["conv*"])
    message = refused(capsys, job, "score.estimator=exact")
    assert "score.estimator" in message
    assert "2^32 = 4,294,967,296 coalitions" in message
    assert "conv" in message


def test_an_output_that_belongs_to_another_job(finished, capsys):
    before = results(finished)
    record = (finished / "run.json").read_bytes()
    job = str(write_job(finished.parent))
    assert main([job, "score.permutations=16", "data.transform.std=[0.5]"]) == 2
    message = capsys.readouterr().err
    assert "score.permutations: 8 there, 16 here" in message
    assert "data.calibration" in message
    assert "score.seed" not in message
    assert results(finished) == before
    assert (finished / "run.json").read_bytes() == record


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    job = write_job(tmp_path, output=str(tmp_path / "file" / "out"))
    assert "cannot write" in refused(capsys, job)


def test_help_says_what_the_statuses_mean():
    text = subprocess.run(
        [os.sys.executable, "-m", "shapray.run", "--help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "section.key=value" in text
    assert "exit status" in text
