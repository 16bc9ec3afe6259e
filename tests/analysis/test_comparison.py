"""Two runs held against each other."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy import stats
from tiny import ENVIRONMENT

import shapray
from shapray.comparing import main
from shapray.storage.run_directory import RunDirectory


@pytest.fixture
def other(finished, tmp_path):
    """The same run with the scores of fc1 turned round, and another unit of conv1 cut."""
    folder = shutil.copytree(finished, tmp_path / "other")
    table = pq.read_table(folder / "scores.parquet")
    in_fc1 = pc.equal(table["group"], "fc1")
    turned = pc.if_else(in_fc1, pc.negate(table["mean_abs"]), table["mean_abs"])
    place = table.schema.get_field_index("mean_abs")
    table = table.set_column(place, table.schema.field(place), turned)
    pq.write_table(table, folder / "scores.parquet")
    store = RunDirectory(str(folder))
    plan = store.read_json("prune/plan.json")
    removed = plan["groups"]["conv1"]["removed"]
    plan["groups"]["conv1"]["removed"] = [*removed[1:], _kept(removed)]
    store.publish_json("prune/plan.json", plan)
    return folder


def _kept(removed):
    return next(unit for unit in range(32) if unit not in removed)


def by_group(table: pa.Table):
    return {row["group"]: row for row in table.to_pylist()}


def test_a_run_agrees_with_itself(finished):
    for row in shapray.compare(str(finished), str(finished)).to_pylist():
        assert row["spearman"] == pytest.approx(1)
        assert row["kendall"] == pytest.approx(1)
        assert row["only_in_a"] == row["only_in_b"] == []
    plan = json.loads((finished / "prune/plan.json").read_text())["groups"]
    found = by_group(shapray.compare(str(finished), str(finished)))
    assert {group: row["removed_in_both"] for group, row in found.items()} == {
        group: len(of["removed"]) for group, of in plan.items()
    }


def test_what_differs_is_found_where_it_is(finished, other):
    found = by_group(shapray.compare(str(finished), str(other)))
    assert found["fc1"]["spearman"] == pytest.approx(-1)
    assert found["conv2"]["kendall"] == pytest.approx(1)
    removed = json.loads((finished / "prune/plan.json").read_text())["groups"]["conv1"]["removed"]
    assert found["conv1"]["only_in_a"] == [removed[0]]
    assert found["conv1"]["only_in_b"] == [_kept(removed)]
    assert found["conv2"]["only_in_a"] == []


def test_the_correlations_are_scipys_and_their_intervals_hold_them(finished):
    """Of one run by two columns, as if they were two runs'."""
    scores = pq.read_table(finished / "scores.parquet")
    random = np.random.default_rng(0)
    a = scores.filter(pc.equal(scores["group"], "conv3"))["mean_abs"].to_numpy()
    b = a + random.normal(0, a.std(), len(a))
    found = _compared(finished, "conv3", b)
    assert found["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(a, b).statistic)
    for name in ("spearman", "kendall"):
        assert -1 < found[f"{name}_low"] < found[name] < found[f"{name}_high"] < 1


def test_intervals_hold_the_true_correlation_as_often_as_they_say():
    """Spearman's, of 30 units whose scores are drawn with a correlation that is known."""
    random, rho = np.random.default_rng(0), 0.6
    true = 6 / np.pi * np.arcsin(rho / 2)  # of normal variables, Pearson 1907
    held = []
    for trial in range(200):
        a, b = random.multivariate_normal([0, 0], [[1, rho], [rho, 1]], 30).T
        runs = [_bare(f"memory://drawn/{trial}-{name}", of) for name, of in (("a", a), ("b", b))]
        (row,) = shapray.compare(*runs, by="mean").to_pylist()
        held.append(row["spearman_low"] <= true <= row["spearman_high"])
    assert 0.9 <= np.mean(held) <= 0.99


def test_few_units_have_no_interval_and_equal_scores_no_correlation(tmp_path):
    few = [_bare(tmp_path / name, of) for name, of in (("a", [1.0, 2, 3]), ("b", [2.0, 1, 3]))]
    (row,) = shapray.compare(*few, by="mean").to_pylist()
    assert row["spearman"] == pytest.approx(0.5)
    assert row["spearman_low"] is None
    assert row["removed_in_both"] is None  # neither has a cut
    equal = _bare(tmp_path / "equal", [1.0] * 3)
    (row,) = shapray.compare(few[0], equal, by="mean").to_pylist()
    assert row["spearman"] is None
    assert row["kendall"] is None


def test_the_command_says_all_of_it(finished, other, capsys):
    assert main([str(finished), str(other)]) == 0
    said = capsys.readouterr().out
    assert "the same network, to the last weight" in said
    assert "-1.000 [-1.00, -1.00]" in said
    assert "conv1: only A removes" in said
    assert "conv1: only B removes" in said
    assert "\x1b" not in said  # no terminal


def test_other_weights_and_other_settings_are_said(finished, other, capsys):
    run = json.loads((other / "run.json").read_text())
    run["fingerprint_parts"] |= {"model.weights": "0" * 64, "score.seed": 7}
    (other / "run.json").write_text(json.dumps(run))
    assert main([str(finished), str(other)]) == 0
    said = capsys.readouterr().out
    assert "the same groups, but other weights" in said
    assert "score.seed: 0 in A, 7 in B" in said


def test_networks_that_differ_are_refused(finished, tmp_path, capsys):
    bare = _bare(tmp_path / "bare", [1.0, 2, 3], group="conv1")
    assert main([str(finished), bare, "--by", "mean"]) == 2
    assert "group 'conv1' has 32 units" in capsys.readouterr().err
    assert main([str(finished), _bare(tmp_path / "none", [1.0], "x"), "--by", "mean"]) == 2
    assert "no group of" in capsys.readouterr().err


def test_a_wrong_run_or_column_is_named(finished, tmp_path, capsys):
    assert main([str(finished), str(tmp_path)]) == 2
    assert "run.json: no such file" in capsys.readouterr().err
    assert main([str(finished), str(finished), "--by", "magnitude"]) == 2
    assert "by: 'magnitude'; the scores of" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_is_there_beside_the_function(finished):
    command = [sys.executable, "-m", "shapray.compare", str(finished), str(finished)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1.000" in done.stdout


def _compared(finished, group, values):
    """`finished` against a copy of its `group` with other scores."""
    found = finished.parent / f"changed-{group}"
    run = _bare(found, values, group, "mean_abs")
    try:
        return by_group(shapray.compare(str(finished), run))[group]
    finally:
        shutil.rmtree(found)


def _bare(folder, values, group="conv", name="mean"):
    """A run directory with scores and nothing else."""
    store = RunDirectory(str(folder))
    store.publish_json("run.json", {})
    values = list(values)
    columns = {"group": [group] * len(values), "unit": range(len(values)), name: values}
    table = pa.table({key: pa.array(column) for key, column in columns.items()})
    store.publish_table("scores.parquet", [table], table.schema)
    return str(folder)
