"""Several rounds of scoring and cutting: what they leave, and what a second command does again."""

import itertools
import json
import shutil
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from plain import without
from tiny import results, shards, start, wait_for_shards, write_job

import shapray
from shapray.again import main as again
from shapray.config import load_job
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.network.find import find_groups
from shapray.pruning.criteria import criterion
from shapray.pruning.saved import read_cut
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("in_process")

N_ROUNDS, MACS = 3, 0.4
OF_A_ROUND = {
    "run.json",
    "groups.parquet",
    "prices.parquet",
    "scores.parquet",
    "class_scores.parquet",
    "model.safetensors",
    "plan.json",
    "prune/group_losses.parquet",
    "shards/columns",
}


def job_of_rounds(folder: Path, **more) -> Path:
    prune = {"macs": MACS, "rounds": N_ROUNDS, "criteria": ["l1_norm"], "curve": [0.7]}
    return write_job(folder, score__permutations=2, prune=prune | {"export": []} | more)


@pytest.fixture(scope="module")
def in_rounds(tmp_path_factory) -> Path:
    """The run directory of a job of three rounds; only to be read."""
    folder = tmp_path_factory.mktemp("rounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "shared", False)
        assert main([str(job_of_rounds(folder))]) == 0
    return folder / "out"


@pytest.fixture
def copied(in_rounds, tmp_path) -> Path:
    shutil.copytree(in_rounds, tmp_path / "out")
    return tmp_path / "out"


def opened(tmp_path):
    """The whole network, and the images, of the job."""
    job = load_job(job_of_rounds(tmp_path))
    images = [
        open_images(section, job.data.transform, "images")
        for section in (job.data.calibration, job.data.evaluation)
    ]
    return build_model(job.model), *images


def removed(folder: Path) -> dict[str, set[int]]:
    plan = json.loads((folder / "plan.json").read_text())
    return {group: set(found["removed"]) for group, found in plan["groups"].items()}


def of_all_rounds(output: Path) -> dict[str, int]:
    """The shards of all rounds; see `shards`."""
    folders = [output, *sorted(output.glob("rounds/*"))]
    return {f"{folder}/{name}": time for folder in folders for name, time in shards(folder).items()}


def test_one_round_leaves_no_folder_of_rounds(finished):
    assert {path.name for path in finished.iterdir()} == {
        "run.json",
        "groups.parquet",
        "prices.parquet",
        "scores.parquet",
        "class_scores.parquet",
        "shards",
        "prune",
        "explain",
        "report.html",
    }
    assert json.loads((finished / "prune/metrics.json").read_text())["rounds"] == 1
    assert json.loads((finished / "prune/plan.json").read_text())["rounds"] == 1


def test_what_rounds_leave(in_rounds):
    assert {path.name for path in (in_rounds / "rounds").iterdir()} == {"2", "3"}
    whole = json.loads((in_rounds / "run.json").read_text())
    cuts = [removed(in_rounds / folder) for folder in ("rounds/2", "rounds/3", "prune")]
    for number in (2, 3):
        folder = in_rounds / "rounds" / str(number)
        there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert {path for path in there if "images-" not in path} == OF_A_ROUND
        record = json.loads((folder / "run.json").read_text())
        assert {stage["state"] for stage in record["stages"].values()} == {"done"}
        assert record["fingerprint"] != whole["fingerprint"]
        scores = pq.read_table(folder / "scores.parquet").to_pandas()
        for group, rows in scores.groupby("group"):
            n_units = whole_units(in_rounds)[group]
            assert len(rows) == n_units - len(cuts[number - 2][group])
    for before, after in itertools.pairwise(cuts):
        assert all(before[group] <= after[group] for group in after)
        assert sum(map(len, before.values())) < sum(map(len, after.values()))


def whole_units(output: Path) -> dict[str, int]:
    groups = pq.read_table(output / "groups.parquet").to_pylist()
    return {row["group"]: row["n_units"] for row in groups if row["status"] == "scored"}


def test_sizes_are_shares_of_the_whole_network_and_are_met(in_rounds):
    metrics = json.loads((in_rounds / "prune/metrics.json").read_text())
    whole, after = (metrics[name]["multiply_adds"] for name in ("before", "after"))
    assert (MACS - 0.02) * whole < after <= MACS * whole
    assert metrics["rounds"] == N_ROUNDS
    rivals = [(found["criterion"], found["rounds"]) for found in metrics["criteria"]]
    assert rivals == [("shapley", 1), ("l1_norm", 1)]
    sizes = [found["multiply_adds"] for found in metrics["criteria"]]
    assert (MACS - 0.03) * whole < min(sizes)
    assert max(sizes) <= 1.005 * after  # whole units
    curve = pq.read_table(in_rounds / "prune/curve.parquet")
    assert not curve.schema.field("rounds").nullable
    rows = {(r["criterion"], r["repair"], r["size"], r["rounds"]) for r in curve.to_pylist()}
    assert rows == {("whole", "none", None, 0), ("shapley", "none", MACS, N_ROUNDS)} | {
        (criterion, "least_squares", size, n_rounds)
        for criterion, size, n_rounds in (
            ("shapley", MACS, N_ROUNDS),
            ("shapley", MACS, 1),
            ("l1_norm", MACS, 1),
            ("shapley", 0.7, 1),
            ("l1_norm", 0.7, 1),
        )
    }


def test_units_are_those_of_the_whole_network(in_rounds, tmp_path):
    """Silenced by hand in the whole network, the cut one's outputs and the loss that was found."""
    model, _, evaluation = opened(tmp_path)
    images, cut = evaluation.load(0, len(evaluation)), removed(in_rounds / "prune")
    small = without(model, images[:1], {group: sorted(units) for group, units in cut.items()})
    readers = {"conv1": "conv2", "conv2": "conv3", "conv3": "fc1", "fc1": "fc2"}
    assert readers.keys() == cut.keys()
    for group, n_units in whole_units(in_rounds).items():

        def silence(_, inputs, group=group, n_units=n_units):
            (x,) = (found.clone() for found in inputs)
            x.view(len(x), n_units, -1)[:, list(cut[group])] = 0  # several features of a unit, too
            return (x,)

        model.get_submodule(readers[group]).register_forward_pre_hook(silence)
    with torch.no_grad():
        silenced, pruned = model(images), small(images)
    assert (silenced - pruned).abs().max() <= 1e-4 * silenced.abs().max()
    loss = torch.nn.functional.cross_entropy(silenced.double(), evaluation.labels).item()
    metrics = json.loads((in_rounds / "prune/metrics.json").read_text())
    assert metrics["cut"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["after"]["loss"] < metrics["cut"]["loss"]


def test_a_further_rounds_scores_are_those_of_its_network(in_rounds, tmp_path):
    model, calibration, _ = opened(tmp_path)
    images = calibration.load(0, len(calibration))
    store = RunDirectory(str(in_rounds / "rounds/2"))
    network, _ = read_cut(store, "the factory", model, images[:1])
    found = shapray.score(
        network,
        images,
        calibration.labels,
        ids=calibration.ids,
        balanced=True,
        permutations=2,
        precision="float32",
        exact_max_players=6,
        images_per_task=2,
        progress=False,
    )
    there = store.read_table("scores.parquet").select(found.scores.column_names)
    assert there.cast(found.scores.schema).equals(found.scores)


def test_a_second_command_scores_nothing_and_reads_the_networks(copied, in_rounds, tmp_path):
    before = of_all_rounds(copied)
    networks = [copied / f"rounds/{number}/model.safetensors" for number in (2, 3)]
    written = [path.stat().st_mtime_ns for path in networks]
    shutil.rmtree(copied / "prune")
    (copied / "rounds/3/scores.parquet").unlink()
    assert main([str(job_of_rounds(tmp_path))]) == 0
    assert of_all_rounds(copied) == before
    assert [path.stat().st_mtime_ns for path in networks] == written
    assert results(copied) == results(in_rounds)
    assert (copied / "rounds/3/scores.parquet").exists()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_that_is_killed_in_round_2_goes_on_there(copied, in_rounds, tmp_path):
    job, output = job_of_rounds(tmp_path), copied
    for folder in ("rounds", "prune"):  # it has come to the end of round 1
        shutil.rmtree(output / folder)
    process = start(job)
    wait_for_shards(output / "rounds/2", 3, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = of_all_rounds(output)
    network = output / "rounds/2/model.safetensors"
    written = network.stat().st_mtime_ns
    assert not (output / "rounds/3").exists(), "it was done before it was killed"

    assert main([str(job)]) == 0
    assert there.items() <= of_all_rounds(output).items()
    assert network.stat().st_mtime_ns == written
    assert results(output) == results(in_rounds)


def test_a_damaged_network_of_a_round_is_made_again(copied, in_rounds, tmp_path):
    network = copied / "rounds/2/model.safetensors"
    network.write_bytes(network.read_bytes()[:-8])
    assert main([str(job_of_rounds(tmp_path))]) == 0
    assert network.read_bytes() == (in_rounds / "rounds/2/model.safetensors").read_bytes()
    assert results(copied) == results(in_rounds)


def test_another_size_needs_other_networks_but_not_the_wholes_scores(copied, tmp_path):
    before, networks = shards(copied), removed(copied / "rounds/2")
    stale = shards(copied / "rounds/2")
    assert main([str(job_of_rounds(tmp_path)), "prune.ratio=0.5", "prune.rounds=2"]) == 0
    assert shards(copied) == before
    assert removed(copied / "rounds/2") != networks
    assert all(time != stale[name] for name, time in shards(copied / "rounds/2").items())
    n_units = whole_units(copied)
    assert sum(map(len, removed(copied / "prune").values())) == sum(n_units.values()) // 2


def test_another_cut_of_such_a_run_is_made_in_one_round_and_says_so(copied, capsys):
    assert again([str(copied), "prune.criteria=[]", "prune.curve=[]", "--name", "once"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "was cut in 3 rounds; this cut is made in one" in said
    metrics = json.loads((copied / "prune/once/metrics.json").read_text())
    assert metrics["rounds"] == 1
    assert again([str(copied), "prune.rounds=2", "--name", "twice"]) == 2
    message = capsys.readouterr().err
    assert "prune.rounds: 2; further rounds need scores of smaller networks" in message
    assert "shapray.run" in message
    assert not (copied / "prune/twice").exists()


def test_rounds_of_a_criterion_are_by_the_smaller_network(tmp_path):
    job = job_of_rounds(tmp_path, rank_by=["l1_norm"], allocation="global", criteria=[], curve=[])
    asked = ["prune.rounds=2", "prune.ratio=0.3", "score.groups=[conv3, fc1]"]
    assert main([str(job), *asked]) == 0
    output = tmp_path / "out"
    store = RunDirectory(str(output / "rounds/2"))
    model, calibration, _ = opened(tmp_path)
    images = calibration.load(0, len(calibration))
    network, _ = read_cut(store, "the factory", model, images[:1])
    groups = [g for g in find_groups(network, images[:1]) if g.name in ("conv3", "fc1")]
    norms = criterion("l1_norm", network, groups, images, None)
    column = store.read_table("scores.parquet")["l1_norm"].to_pylist()
    assert column == [*norms["conv3"], *norms["fc1"]]
    assert not (output / "rounds/2/prune").exists()  # no losses are measured


def test_a_rounds_tables_are_a_runs(in_rounds):
    second = shapray.tables(str(in_rounds / "rounds" / "2"))
    assert {"groups", "scores", "images", "group_losses"} <= set(second.names)
    connection = second.duckdb()
    apart = 'SELECT max(abs(mean - m)) FROM scores JOIN (SELECT "group", unit, avg(shapley_value) '
    apart += 'AS m FROM values GROUP BY ALL) USING ("group", unit)'
    ((most,),) = connection.sql(apart).fetchall()
    assert most < 1e-9
