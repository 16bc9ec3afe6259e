"""What is wrong with a job or its inputs: one message, status 2, and nothing written."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import DIGITS, digits_with, results, start, write_job

from shapray.run import main

pytestmark = pytest.mark.usefixtures("in_process")


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


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["data.calibration.path=nowhere.parquet"], ["data.calibration", "nowhere.parquet"]),
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
        (["prune.rank_by=magic"], ["prune.rank_by.0: expected auto, mean", "taylor", "magic"]),
        (["prune.criteria=[random, magic]"], ["prune.criteria.1: expected mean", "magic"]),
        (["prune.repair=[magic]"], ["prune.repair.0: expected one of", "least_squares", "magic"]),
        (["prune.repair=[distill, batchnorm]"], ["done in the order ['batchnorm', 'distill']"]),
        (["prune={macs: 0.5, ratio: 0.5}"], ["macs: 0.5 and ratio: 0.5; one of them"]),
        (
            ["prune.macs=0.1", "prune.round_to=16", "prune.curve=[]"],
            ["prune.macs: 0.1 cannot be met", "round_to 16", "the nearest is 0."],
        ),
        (
            ["prune.ratio=0.5", "prune.protect=[conv*]"],
            ["prune.ratio: 0.5 cannot be met", "['conv*']", "43.75% of the units can go"],
        ),
        (["prune.rounds=0"], ["prune.rounds: expected a whole number from 1", "(found 0)"]),
        (["prune.rounds=1.5"], ["prune.rounds: expected a whole number from 1", "1.5"]),
        (
            ["prune.rounds=2", "prune.latency=0.5"],
            ["rounds is 2, with latency: 0.5", "macs, parameters or ratio"],
        ),
        (["prune.rounds=3", "prune.min_accuracy=0.5"], ["rounds is 3, with min_accuracy: 0.5"]),
        (
            ["prune.rounds=500"],
            ["prune.rounds: 500", "144 units in the 4 groups", "140 can go", "140 rounds at most"],
        ),
        (
            ["prune.latency=0.0001", "prune.curve=[]"],
            ["prune.latency: 0.0001 cannot be met: with all units gone that may go", "takes 0."],
        ),
        (
            ["prune.min_accuracy=0.5", "prune.repair=[distill]", "data.calibration.limit=23"],
            ["distill needs 20 calibration images, and there are 23, of which", "holds 4 back"],
        ),
        (
            ["prune.rank_by=batchnorm_scale"],
            ["prune.rank_by: criterion batchnorm_scale, group fc1: it has no BatchNorm"],
        ),
        (
            [
                "prune.repair=[distill]",
                "prune.distill={labels: true}",
                "data.calibration.label_column=null",
                "score.value=neg_kl_divergence",
            ],
            ["prune.distill.labels: true, and the calibration images have none"],
        ),
        (["output=nosuch://bucket/run"], ["output", "nosuch://bucket/run"]),
    ],
)
def test_wrong_input_gets_one_message(tmp_path, capsys, overrides, found):
    message = refused(capsys, write_job(tmp_path), *overrides)
    for part in found:
        assert part in message


def test_more_accuracy_than_the_whole_network_has(tmp_path, capsys):
    labels = (pq.read_table(DIGITS)["label"].to_numpy() + 1) % 10
    job = write_job(tmp_path, data__calibration__path=digits_with(tmp_path, label=labels))
    message = refused(capsys, job, "prune.min_accuracy=0.5")
    assert "prune.min_accuracy: 0.5; the whole network has 0 on the 4 calibration" in message


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


def test_an_output_that_belongs_to_another_job(finished, tmp_path, capsys):
    output = tmp_path / "out"
    shutil.copytree(finished, output)
    record = (output / "run.json").read_bytes()
    job = str(write_job(tmp_path))
    assert main([job, "score.permutations=16", "data.transform.std=[0.5]"]) == 2
    message = capsys.readouterr().err
    assert "score.permutations: auto there, 16 here" in message
    assert "data.calibration" in message
    assert "score.seed" not in message
    assert results(output) == results(finished)
    assert (output / "run.json").read_bytes() == record


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    job = write_job(tmp_path, output=str(tmp_path / "file" / "out"))
    assert "cannot write" in refused(capsys, job)
