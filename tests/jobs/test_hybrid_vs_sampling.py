"""The experiment on hybrid and sampling: its methods differ by what they should, its numbers add
up, and what was computed is not computed again."""

import numpy as np
import pytest

pytest.importorskip("scipy", reason="of the extra `benchmark`, as matplotlib")
pytest.importorskip("matplotlib")

from jobs.experiments.hybrid_vs_sampling import __main__ as experiment
from jobs.experiments.hybrid_vs_sampling import danger, networks, results, tables
from jobs.experiments.hybrid_vs_sampling.compare import differences, paired
from jobs.experiments.hybrid_vs_sampling.cuts import seed_rows
from jobs.experiments.hybrid_vs_sampling.networks import Plan, load
from jobs.experiments.hybrid_vs_sampling.values import GroupOnImages

PLAN = Plan(8, (2,), ("plain",), (0.7,), n_images=(10,))


@pytest.fixture(scope="module")
def trained():
    return load("digits_vgg", PLAN)


@pytest.fixture(scope="module")
def rows(trained):
    return [row for seed in (0, 1) for row in seed_rows(trained, seed)]


@pytest.fixture(scope="module")
def last_group(trained):
    images = trained.calibration(10, 0)
    group = trained.groups[-1]
    return GroupOnImages(trained.folded, group, images, images.load(0, len(images)), 8)


def known(row):
    return {key: value for key, value in row.items() if value is not None}


def test_methods_differ_on_the_images_that_are_enumerated_only(last_group):
    every = np.arange(10)
    found = {name: of[0] for name, of in last_group.by_method("plain", 2, 0, [every]).items()}
    hybrid, sampling = found["hybrid"], found["sampling"]
    assert 0 < hybrid.exact.sum() < 10
    assert (hybrid.exact == (last_group.n_active <= 8)).all()
    differs = (hybrid.phi != sampling.phi).any(1)
    assert (differs == hybrid.exact).all()
    np.testing.assert_allclose(hybrid.phi.sum(1), sampling.phi.sum(1), rtol=1e-6, atol=1e-8)
    matched = found["sampling_equal_evaluations"]
    assert hybrid.evaluations.sum() <= matched.evaluations.sum() < 1.5 * hybrid.evaluations.sum()
    assert not matched.exact.any()


def test_cuts_of_a_size_are_networks_of_one_shape(rows):
    assert {row["method"] for row in rows} == {
        "hybrid",
        "sampling",
        "sampling_equal_evaluations",
        "random",
    }
    assert len({row["macs"] for row in rows}) == 1
    assert all(0 <= row["top1"] <= 1 for row in rows)


def test_fewer_images_of_a_seed_are_among_the_more(trained):
    few, many = (set(trained.calibration(n, 3).ids) for n in (10, 250))
    assert few < many


def test_differences_are_paired_by_seed_and_setting(rows):
    found = differences(rows, "hybrid", "random", "top1")
    assert list(found) == [0, 1]
    of_seed = [row for row in rows if row["seed"] == 1]

    def mean(method):
        # as many of every number of images and ranking, except for repairs by one ranking
        return np.mean([r["top1"] for r in of_seed if r["method"] == method])

    part = [r for r in of_seed if r["repair"] == "none"]
    by_hand = np.mean([r["top1"] for r in part if r["method"] == "hybrid"]) - np.mean(
        [r["top1"] for r in part if r["method"] == "random"]
    )
    assert differences(part, "hybrid", "random", "top1")[1] == pytest.approx(by_hand)


def test_paired_statistics():
    found = paired([0.01, 0.02, 0.03, 0.02, 0.02])
    assert found.mean == pytest.approx(0.02)
    assert found.high - found.mean == pytest.approx(2.776 * 0.00707107 / 5**0.5, rel=1e-3)
    assert found.effect == pytest.approx(0.02 / 0.00707107, rel=1e-5)
    assert (found.better, found.worse, found.n) == (5, 0, 5)
    same = paired([0.0, 0.0])
    assert (same.mean, same.low, same.high, same.p, same.effect) == (0, 0, 0, 1, 0)
    with pytest.raises(ValueError, match="1 seeds"):
        paired([0.1])


def test_a_run_goes_on_where_it_was_and_fills_tables_and_plots(tmp_path, monkeypatch, rows):
    monkeypatch.setattr(experiment, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "README", tmp_path / "README.md")
    names = ("overall", "settings", "danger")
    marks = "".join(f"<!-- {name}: generated -->\n<!-- {name}: end -->\n" for name in names)
    results.README.write_text(marks)
    first = tmp_path / "cuts" / "digits_vgg-0.parquet"
    results.write_piece(first, [row for row in rows if row["seed"] == 0])
    written = first.stat().st_mtime_ns
    monkeypatch.setitem(networks.PLANS, "digits_vgg", PLAN)
    arguments = ["x", "--networks", "digits_vgg", "--what", "cuts", "--seeds", "0", "1"]
    monkeypatch.setattr("sys.argv", [*arguments, "--readme"])
    experiment.main()
    assert first.stat().st_mtime_ns == written
    assert [known(row) for row in results.read(first.parent)] == [known(row) for row in rows]
    assert "| digits_vgg |" in results.README.read_text()
    assert (tmp_path / "differences.png").stat().st_size > 1000


def test_danger_counts_units_that_exact_values_keep(trained, monkeypatch):
    monkeypatch.setattr(danger, "BINS", ((1, 8),))
    monkeypatch.setattr(danger, "MOST_IMAGES", 24)
    monkeypatch.setattr(danger, "PERMUTATIONS", (2,))
    monkeypatch.setattr(danger, "N_SEEDS", 2)
    found = danger.group_rows(trained, trained.groups[-1])
    assert {row["seed"] for row in found} == {0, 1}
    assert {row["n_images"] for row in found} == {10}
    assert all(0 <= row["wrong_by_sampling"] <= 1 for row in found)
    assert all(row["excess_exact"] >= 0 and row["excess_sampled"] >= 0 for row in found)
    assert any(row["wrong_by_images"] > 0 for row in found)
    assert "| digits_vgg |" in tables.danger(found)
