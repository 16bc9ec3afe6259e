"""What a run says of how its scores come about."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr
from tiny import write_job

from shapray.run import main
from shapray.storage.explained import TABLES
from shapray.storage.run_directory import RunDirectory
from shapray.worker.explainer import Explainer


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch):
    monkeypatch.setattr(RunDirectory, "shared", False)


def explained(folder):
    return {name: pq.read_table(folder / f"explain/{name}.parquet") for name in TABLES}


def test_every_table_is_there_and_speaks_of_every_group(finished):
    found = explained(finished)
    scores = pq.read_table(finished / "scores.parquet")
    for name, table in found.items():
        assert table.schema.equals(TABLES[name]), name
    units = found["units"]
    assert units.select(["group", "unit"]).equals(scores.select(["group", "unit"]))
    for name in ("correlations", "sizes", "additivity", "extremes", "cards"):
        assert set(found[name]["group"].to_pylist()) == set(scores["group"].to_pylist()), name
    assert len(found["class_removal"]) == 3 * 10


def test_the_units_are_the_runs_own(finished):
    units = pq.read_table(finished / "explain/units.parquet").to_pandas()
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    plan = json.loads((finished / "prune/plan.json").read_text())["groups"]
    np.testing.assert_allclose(units["positive"] + units["negative"], scores["mean"], atol=1e-6)
    np.testing.assert_allclose(units["positive"] - units["negative"], scores["mean_abs"], atol=1e-6)
    for group, rows in units.groupby("group"):
        assert rows["unit"][rows["removed"]].tolist() == plan[group]["removed"]
    classes = pq.read_table(finished / "class_scores.parquet").to_pandas()
    best = classes.loc[classes.groupby(["group", "unit"])["mean"].idxmax()]
    expected = best.set_index(["group", "unit"])
    found = units.set_index(["group", "unit"])["serves"]
    useful = expected["mean"] > 0
    assert (found[useful] == expected["label"][useful]).all()
    assert found[~useful].isna().all()
    unsure = units["misplaced"].dropna()
    assert unsure.between(0, 1).all()
    assert unsure.max() > 0  # 24 images tell little


def test_the_correlations_are_of_the_scores_and_the_columns_beside_them(finished):
    units = pq.read_table(finished / "explain/units.parquet").to_pandas()
    scores = pq.read_table(finished / "scores.parquet").to_pandas()
    both = scores.merge(units, on=["group", "unit"])
    for row in pq.read_table(finished / "explain/correlations.parquet").to_pylist():
        rows = both[both["group"] == row["group"]]
        if row["correlation"] is None:  # a constant column says nothing
            assert rows[row["other"]].nunique() == 1
            continue
        expected = spearmanr(rows[row["score"]], rows[row["other"]]).statistic
        assert row["correlation"] == pytest.approx(expected, abs=1e-9)


def test_a_run_again_explains_only_what_has_changed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    asked = [str(write_job(tmp_path)), "explain.images=8", "prune.curve=[]", "prune.criteria=[]"]
    before = {name: (tmp_path / f"out/explain/{name}.parquet").read_bytes() for name in TABLES}
    assert main(asked) == 0
    stage = json.loads((tmp_path / "out/run.json").read_text())["stages"]["explain"]
    assert stage["groups_found_done"] == stage["groups"] == 4
    (tmp_path / "out/explain/sizes.parquet").write_bytes(b"torn")
    assert main(asked) == 0
    after = explained(tmp_path / "out")
    for name, data in before.items():
        pq_before = pq.read_table(io.BytesIO(data))
        assert after[name].equals(pq_before), name


@pytest.mark.slow
def test_images_without_labels_are_explained_as_far_as_that_goes(tmp_path):
    job = write_job(
        tmp_path, score__value="neg_kl_divergence", data__calibration__label_column=None
    )
    assert main([str(job), "explain.images=4", "prune.curve=[]", "prune.criteria=[]"]) == 0
    units = pq.read_table(tmp_path / "out/explain/units.parquet")
    assert units["serves"].null_count == len(units)
    assert units["leave_one_out"].null_count == 0
    assert not (tmp_path / "out/explain/class_removal.parquet").exists()


def test_nothing_stays_of_another_cut_or_of_groups_that_are_scored_no_more(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    asked = [str(write_job(tmp_path)), "prune.curve=[]", "prune.criteria=[]"]
    fewer = ["score.groups=[conv3]", "prune.allocation=uniform", "explain.images=8"]
    assert main([*asked, *fewer]) == 0
    for name, table in explained(tmp_path / "out").items():
        if name == "class_removal":
            assert all(unit.startswith("conv3/") for unit in table["units"].to_pylist()[0])
        else:
            assert set(table["group"].to_pylist()) <= {"conv3"}, name
    assert main([*asked, "prune.ratio=0.5"]) == 0
    assert list((tmp_path / "out/explain").iterdir()) == []


def test_a_page_that_cannot_be_made_does_not_take_the_results_away(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out/prune/small").mkdir()
    (tmp_path / "out/prune/small/metrics.json").write_text("{}")
    assert main([str(write_job(tmp_path)), "prune.curve=[]", "prune.criteria=[]"]) == 0
    said = capsys.readouterr().out
    assert "95 % interval of the accuracy after" in said
    assert "there is no new report (JobError: " in said


def test_an_explanation_that_fails_leaves_the_cut_and_its_figures(tmp_path, monkeypatch, capsys):
    def broken(self, task):
        raise ArithmeticError("no")

    monkeypatch.setattr(Explainer, "explain", broken)
    job = write_job(tmp_path)
    asked = ["score.groups=[conv3]", "explain.images=4", "prune.curve=[]", "prune.criteria=[]"]
    assert main([str(job), *asked]) == 3
    said = capsys.readouterr()
    assert "95 % interval of the accuracy after" in said.out
    assert "stage explain: 1 task failed" in said.err
    assert (tmp_path / "out/prune/metrics.json").exists()
    assert (tmp_path / "out/report.html").exists()
    monkeypatch.undo()
    monkeypatch.setattr(RunDirectory, "shared", False)
    assert main([str(job), *asked]) == 0
    assert set(explained(tmp_path / "out")["units"]["group"].to_pylist()) == {"conv3"}


def test_nothing_is_explained_where_nothing_is_asked_for(tmp_path):
    job = write_job(tmp_path, score__groups=["conv3"])
    assert main([str(job), "prune.curve=[]", "prune.criteria=[]"]) == 0
    assert not (tmp_path / "out/explain").exists()
    assert "explain" not in json.loads((tmp_path / "out/run.json").read_text())["stages"]
