"""Whole runs on real digits: what they leave, wherever their workers are."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from tiny import TABLES, results, write_job

from shapray.pruning.repair.curves import counts
from shapray.pruning.saved import load_pruned
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

REPAIRED = ("least_squares", 0.3, None)  # the job's own cut: repair, size, seed

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
    written = json.loads((finished / "prune/plan.json").read_text())
    plan = written["groups"]
    n_units = sum(group["n_units"] for group in plan.values())
    n_removed = sum(len(group["removed"]) for group in plan.values())
    assert n_removed == int(0.3 * n_units)
    assert all(len(group["removed"]) < group["n_units"] for group in plan.values())

    metrics = json.loads((finished / "prune/metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert after["parameters"] < before["parameters"]
    assert after["multiply_adds"] < before["multiply_adds"]
    assert after["top1_low"] < after["top1"] <= after["top1_high"]
    assert len(before["per_class"]) == len(after["per_class"]) == 10
    assert [found["seed"] for found in metrics["random"]] == [0, 1]
    for found in metrics["random"]:  # cut to the same multiply-adds
        assert found["multiply_adds"] <= 1.005 * after["multiply_adds"]
    assert metrics["criteria"] == []
    assert metrics["cut"]["multiply_adds"] == after["multiply_adds"]
    assert metrics["cut"]["loss"] > after["loss"] > before["loss"]
    saved = safetensors.torch.load_file(finished / "prune/model.safetensors")
    assert (finished / "prune/model.pt2").exists()
    network = load_pruned(str(finished))
    assert sum(p.numel() for p in network.parameters()) == after["parameters"]
    assert all(torch.equal(saved[name], value) for name, value in network.state_dict().items())
    kept = written["modules"]["conv2"]["inputs"]
    assert kept == [u for u in range(32) if u not in plan["conv1"]["removed"]]
    assert len(kept) == network.conv2.in_channels
    assert written["dropped"] == {}

    curve = pq.read_table(finished / "prune/curve.parquet").to_pylist()
    found = {(row["criterion"], row["repair"], row["size"], row["seed"]) for row in curve}
    assert len(curve) == len(found)
    assert found == {("whole", "none", None, None), ("shapley", "none", 0.3, None)} | {
        (criterion, "least_squares", size, seed)
        for size in (0.3, 0.5)
        for criterion, seed in [("shapley", None), ("random", 0), ("random", 1)]
    }
    assert [row["multiply_adds"] for row in curve] == sorted(
        (row["multiply_adds"] for row in curve), reverse=True
    )
    [own] = [row for row in curve if (row["repair"], row["size"], row["seed"]) == REPAIRED]
    assert own["ratio"] == 0.3
    assert own["removed_fraction"] == n_removed / n_units
    measured = ("top1", "top1_low", "top1_high", "top5", "loss", "loss_low", "loss_high")
    assert [own[name] for name in measured] == [after[name] for name in measured]
    losses = pq.read_table(finished / "prune/group_losses.parquet").to_pandas()
    for (_, group), rows in losses.query("criterion == 'shapley'").groupby(["criterion", "group"]):
        assert rows["n_removed"].tolist() == counts(plan[group]["n_units"])
        assert rows["loss"].iloc[0] == 0
        assert (rows["loss"] >= 0).all()


def test_run_json_tells_what_was_run(finished):
    record = json.loads((finished / "run.json").read_text())
    assert {stage["state"] for stage in record["stages"].values()} == {"done"}
    assert list(record["stages"]) == [
        *("plan", "score", "aggregate", "prune", "evaluate", "explain")
    ]
    assert record["job"]["score"]["permutations"] == "auto"
    assert record["example_shape"] == [1, 1, 8, 8]
    assert record["n_classes"] == 10
    assert record["failures"] == []


# ---- the same numbers ------------------------------------------------------------------------


@pytest.mark.cluster
def test_two_workers_on_ray_give_what_one_in_this_process_gives(shared_ray, finished, tmp_path):
    assert main([str(write_job(tmp_path))]) == 0
    assert results(tmp_path / "out") == results(finished)


def test_a_run_in_memory_gives_the_tables_of_one_in_a_folder(finished, tmp_path):
    output = f"memory://{tmp_path.name}"
    assert main([str(write_job(tmp_path)), f"output={output}"]) == 0
    store = RunDirectory(output)
    for name in TABLES:
        assert store.read_table(name).equals(pq.read_table(finished / name)), name


def test_the_command_says_what_its_statuses_mean(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "section.key=value" in said
    assert "exit status" in said


@pytest.mark.usefixtures("in_process", "no_ray")
def test_the_same_scores_by_sampling_only_are_a_rival(tmp_path):
    """Of a job that samples every image it is the job's own score, else another one."""
    columns = {}
    for estimator in ("permutation", "hybrid"):
        folder = tmp_path / estimator
        folder.mkdir()
        asked = [f"score.estimator={estimator}", "score.exact_max_players=12"]
        asked += ["score.value=logit_margin", "score.permutations=4", "score.seed=3"]
        asked += ["score.groups=[conv3, fc1]", "prune.repair=[]"]
        asked += ["prune.criteria=[shapley_sampled]", "prune.allocation=global", "prune.curve=[]"]
        assert main([str(write_job(folder)), *asked]) == 0
        columns[estimator] = pq.read_table(folder / "out/scores.parquet").to_pandas()
        metrics = json.loads((folder / "out/prune/metrics.json").read_text())
        assert [found["criterion"] for found in metrics["criteria"]] == ["shapley_sampled"]
    sampled, hybrid = columns["permutation"], columns["hybrid"]
    np.testing.assert_allclose(sampled["shapley_sampled"], sampled["mean_abs"], rtol=1e-4)
    np.testing.assert_allclose(hybrid["shapley_sampled"], sampled["mean_abs"], rtol=1e-4)
    enumerated = hybrid.query("n_exact > 0")
    assert len(enumerated)
    assert not np.allclose(enumerated["shapley_sampled"], enumerated["mean_abs"], rtol=1e-3)
