"""Prices and numbers of images: chosen once, kept, and met."""

import io
import re

import fsspec
import pyarrow.parquet as pq
import pytest
from pictures import callable_set, pixels
from PIL import Image as Pillow
from tiny import DIGITS, SCORED, write_job

from shapray.again import main as prune_main
from shapray.config import Images, Transform
from shapray.driver.prices import GroupPrice, publish_prices, read_prices
from shapray.inputs.images import open_images
from shapray.run import main
from shapray.shapley.pilot import Price
from shapray.storage.aggregate import aggregate_group
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
    calibration = callable_set([pixels(i) for i in range(200)])
    prices = {
        "conv1": GroupPrice(Price(4, "permutations"), 64, 1.0, 0.1, 2.0),
        "conv2": GroupPrice(Price(2, "permutations", 16), 200),
    }
    publish_prices(memory, prices, "a run", calibration)
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
    # bit by bit it comes to the same as all at once
    shards = [memory.read_table(path) for path in sorted(list_shards(memory))]
    n_units = len(shards[0]["active"][0])
    n_images = sum(map(len, shards))
    at_once, _ = aggregate_group("conv3", n_units, shards, balanced=n_images < ALL)
    assert memory.read_table("scores.parquet").select(at_once.column_names).equals(at_once)
    before = {path: memory.read(path) for path in list_shards(memory)}

    # the same command finds all of it done, and a cut anew takes the same images
    assert main([*asked, *SCORED]) == 0
    said = capsys.readouterr().out
    assert f"{len(before)} of {len(before)} shards are there already" in said
    assert "pilot" not in said
    assert {path: memory.read(path) for path in list_shards(memory)} == before
    memory.fs.rm(f"{memory.root}/prices.parquet")
    assert prune_main([OUTPUT, "prune.ratio=0.3", "--name", "again"]) == 0


@pytest.fixture
def spared(tmp_path, memory):
    """A job on the digits as files, with images to spare, and the files in the order in which they
    are taken."""
    root = tmp_path / "digits"
    table = pq.read_table(DIGITS).to_pylist()
    for row in (row for row in table if row["split"] == "calibration"):
        file = root / str(row["label"]) / f"{row['image_id'].replace('/', '-')}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(row["image"])
    images = {"source": "imagefolder", "path": str(root), "limit": "auto"}
    asked = job(tmp_path, data__calibration=images, score__groups=["conv3"], prune__ratio=0.3)
    ids = open_images(Images(**images), Transform(mode="L"), "data.calibration").ids
    return [asked, *SCORED], [root / image_id for image_id in ids]


def test_images_that_are_not_taken_stay_closed(spared, memory):
    asked, files = spared
    for file in files[64:]:
        file.write_bytes(b"")
    for command in (["--plan"], []):
        assert main([*asked, "score.target_error=0.9", *command]) == 0
    assert set(memory.read_table("scores.parquet")["n_images"].to_pylist()) == {64}
    assert prune_main([OUTPUT, "prune.ratio=0.4", "--name", "again"]) == 0


def test_a_size_is_searched_on_images_enough_however_few_are_taken(spared, memory, capsys):
    asked, _ = spared
    asked = [*asked, "score.target_error=0.9", "prune.ratio=null", "prune.repair=[least_squares]"]
    assert main([*asked, "prune.min_accuracy=0.5"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert set(memory.read_table("scores.parquet")["n_images"].to_pylist()) == {64}
    found = re.search(
        r"min_accuracy: 0.5 takes ([\d.]+)% of the multiply-adds, measured on (\d+)", said
    )
    assert float(found[1]) < 100
    assert int(found[2]) == ALL // 5
    # a cut anew searches on the same images
    assert prune_main([OUTPUT, "--name", "again"]) == 0
    assert found[0] in " ".join(capsys.readouterr().out.split())


def test_images_that_are_taken_later_are_looked_at_then(spared, memory, capsys):
    asked, files = spared
    asked = [*asked, "score.target_error=0.05"]
    sound = files[150].read_bytes()

    def refused():
        assert main(asked) == 2
        return " ".join(capsys.readouterr().err.split())

    files[150].write_bytes(sound[:-20])
    assert re.search(rf"{files[150].name}.* does not decode", refused())
    of_evaluation = pq.read_table(DIGITS, filters=[("split", "==", "evaluation")])
    asked.append("data.evaluation.limit=null")
    files[150].write_bytes(of_evaluation["image"][0].as_py())
    assert "data.calibration and data.evaluation share 1 images" in refused()
    files[150].write_bytes(sound)
    assert main(asked) == 0
    capsys.readouterr()
    assert main(asked) == 0
    assert "shards are there already" in capsys.readouterr().out

    # what was taken later must stay what it was
    changed = io.BytesIO()
    Pillow.new("L", (8, 8), 77).save(changed, "PNG")
    files[150].write_bytes(changed.getvalue())
    assert "some of the 200 images of data.calibration that it has taken have" in refused()
    assert prune_main([OUTPUT, "prune.ratio=0.3", "--name", "again"]) == 2


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
