"""Networks of one size by criteria and repairs: what is measured, and what is not done again."""

import pytest
import torch

from jobs.benchmarks import compression
from jobs.benchmarks.compression import Judge, run
from jobs.benchmarks.draws import Draw, Trained
from jobs.benchmarks.results import read
from shapray.zoo import CifarResNet


@pytest.fixture(scope="module")
def judged():
    torch.manual_seed(0)
    model = CifarResNet(n_blocks=1, num_classes=10).eval()
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 10
    trained = Trained.of("tiny", model, images[:1])
    return trained, Judge(model, images[8:], labels[8:]), images[:8], labels[:8]


def test_networks_of_all_rankings_are_equally_large_and_what_is_there_is_not_measured_again(
    judged, tmp_path, monkeypatch
):
    trained, judge, images, labels = judged
    draw = Draw(0, images, labels, [f"{i}" for i in range(8)], tmp_path / "scores.parquet")
    path = tmp_path / "compression.parquet"
    for name in ("l1_norm", "taylor", "random-0"):
        run(trained, draw, name, judge, [0.5], path)
    rows = read(path)
    whole = trained.sizes.all_macs
    assert {row["criterion"] for row in rows} == {"l1_norm", "taylor", "random-0"}
    assert all(0.495 * whole <= row["multiply_adds"] <= 0.5 * whole for row in rows)
    monkeypatch.setattr(compression, "RankingBenchmark", None)  # nothing is left to measure
    run(trained, draw, "taylor", judge, [0.5], path)
    assert read(path) == rows


def test_what_a_stopped_run_has_left_is_measured_on_the_same_cut(judged, tmp_path, monkeypatch):
    trained, judge, images, labels = judged
    draw = Draw(0, images, labels, [f"{i}" for i in range(8)], tmp_path / "scores.parquet")
    path = tmp_path / "compression.parquet"
    monkeypatch.setattr(compression, "BY_GRAIL", ())
    run(trained, draw, "l1_norm", judge, [0.5], path)
    [first] = read(path)
    monkeypatch.setattr(compression, "NOT_REPAIRED", ("l1_norm",))
    monkeypatch.setattr(compression, "loss_curves", None)  # the cut is known
    run(trained, draw, "l1_norm", judge, [0.5], path)
    again, *others = read(path)
    assert again == first
    assert [row["repair"] for row in others] == ["none", "batchnorm"]
    assert all(row["kept"] == first["kept"] for row in others)
