"""Prices and numbers of images: chosen once, kept, and met."""

import fsspec
import pytest
from tiny import SCORED, write_job

from shapray.again import main as prune_main
from shapray.driver.prices import GroupPrice, publish_prices, read_prices
from shapray.run import main
from shapray.shapley.pilot import Price
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import list_shards

OUTPUT = "memory://prices-test"
ALL = 200  # calibration images of the digits


@pytest.fixture
def memory():
    """The run directory in memory, empty before and after."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield RunDirectory(OUTPUT)
    fs.store.clear()


def job(tmp_path, **settings):
    return str(write_job(tmp_path, output=OUTPUT, score__precision="float32", **settings))


def test_prices_are_read_as_they_were_written(memory):
    prices = {
        "conv1": GroupPrice(Price(4, "permutations"), 64, 1.0, 0.1, 2.0),
        "conv2": GroupPrice(Price(2, "permutations", 16), 200),
    }
    publish_prices(memory, prices, "a run")
    found = read_prices(memory, "a run")
    assert found["conv1"] == prices["conv1"]
    assert found["conv2"].price == prices["conv2"].price
    assert read_prices(memory, "another run") == {}


def test_images_are_taken_until_the_error_is_met(tmp_path, memory, capsys):
    asked = [
        job(tmp_path, score__target_error=0.3, score__groups=["conv3"]),
        "data.calibration.limit=auto",
    ]
    assert main([*asked, *SCORED]) == 0
    capsys.readouterr()
    prices = {row["group"]: row for row in memory.read_table("prices.parquet").to_pylist()}
    scores = memory.read_table("scores.parquet").to_pandas()
    for group, rows in scores.groupby("group"):
        n_images = prices[group]["n_images"]
        assert set(rows["n_images"]) == {n_images}
        spread = rows["mean"].var(ddof=0) - (rows["total_error"] ** 2).mean()
        met = (rows["total_error"] ** 2).mean() <= 0.3**2 * spread
        assert met or n_images == ALL
    before = {path: memory.read(path) for path in list_shards(memory)}

    # the same command finds all of it done, and a cut anew takes the same images
    assert main([*asked, *SCORED]) == 0
    said = capsys.readouterr().out
    assert f"{len(before)} of {len(before)} shards are there already" in said
    assert "pilot" not in said
    assert {path: memory.read(path) for path in list_shards(memory)} == before
    memory.fs.rm(f"{memory.root}/prices.parquet")
    assert prune_main([OUTPUT, "prune.ratio=0.3", "--name", "again"]) == 0


def test_a_target_that_is_missed_is_told_with_what_would_meet_it(tmp_path, memory, capsys):
    asked = job(tmp_path, score__target_error=0.01, score__groups=["conv3"])
    assert main([asked, *SCORED]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "score.target_error: 0.01 is met by 0 of 1 groups with the 24 calibration images" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["score.target_error=0.1", "--budget", "1h"],
            "--budget 1h and score.target_error: 0.1 both say when it is enough",
        ),
        (
            ["score.target_error=0.1", "score.permutations=8"],
            "score.permutations is 8 and data.calibration.limit is 24; set score.permutations or",
        ),
        (
            ["score.target_error=0.1", "score.estimator=exact"],
            "nothing to meet it with: score.estimator is exact",
        ),
        (["data.evaluation.limit=auto"], "a number, or null for all"),
    ],
)
def test_what_cannot_be_chosen_is_refused(tmp_path, memory, capsys, settings, said):
    assert main([job(tmp_path), *settings]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not memory.fs.store


def test_a_budget_is_spent_on_images_first(tmp_path, memory, capsys):
    asked = [job(tmp_path, score__groups=["conv3"]), "data.calibration.limit=auto", *SCORED]
    assert main([*asked, "--plan", "--budget", "1d"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"--budget 1d: 1024 permutations per image of {ALL} images" in said
    assert not memory.fs.store
