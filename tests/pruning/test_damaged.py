"""What is said of files of a compressed network that are missing, damaged or of another network."""

import re

import pytest
from cut_digits import REMOVED
from saved_run import files, write_run
from torch import nn

from shapray import load_pruned
from shapray.errors import JobError
from shapray.storage.run_directory import RunDirectory


@pytest.mark.parametrize("name", ["run.json", "prune/plan.json", "prune/model.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path, pruned, name):
    write_run(str(tmp_path), pruned)
    named = re.escape(f"{tmp_path}/{name}")
    for damaged in (b"", b"{", b"{}", b"[]", b"3", b"\xff\xfe", b'{"groups": 3, "job": []}'):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(JobError, match=named):
            load_pruned(str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(JobError, match=f"{named}: no such file"):
        load_pruned(str(tmp_path))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"prune": {"state": "waiting"}}, "the run's stage prune is 'waiting', not 'done'"),
        ({"prune": {"state": "done"}}, "the run's stage evaluate is 'waiting', not 'done'"),
        ({"score": {"state": "done"}}, "the run had no stage that prunes"),
        ({"prune": {"state": "done"}, "evaluate": {"state": "done"}}, "it was deleted"),
    ],
)
def test_a_run_without_a_compressed_network(tmp_path, stages, message):
    run, _ = files()
    RunDirectory(str(tmp_path)).publish_json("run.json", run | {"stages": stages})
    with pytest.raises(JobError, match=rf"prune/plan\.json: no such file; {message}"):
        load_pruned(str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "its format is 2; this version reads 1"),
        ({"format": 1.0}, "format"),
        ({"format": True}, "format"),
        ({"groups": []}, "groups"),
        ({"groups": {"conv1": None}}, r"groups\.conv1"),
        ({"groups": {"conv1": {"n_units": 32}}}, r"groups\.conv1\.removed: Field required"),
        ({"dropped": {"aid": None}}, "the network has no 'aid' to drop"),
        ({"dropped": {"conv1": True}}, r"dropped\.conv1"),
        ({"n_units": 32.0}, r"groups\.conv1\.n_units"),
        ({"n_units": "32"}, r"groups\.conv1\.n_units"),
        ({"n_units": 0}, r"groups\.conv1\.n_units"),
        ({"removed": [1.0, 2.0]}, r"groups\.conv1\.removed\.0"),
        ({"removed": [3, 2.5]}, r"groups\.conv1\.removed\.1"),
        ({"removed": [True]}, r"groups\.conv1\.removed\.0"),
        ({"removed": 3}, r"groups\.conv1\.removed"),
        ({"removed": [-1]}, r"groups\.conv1\.removed\.0"),
        ({"removed": [4, 32]}, r"groups\.conv1: removes unit 32; its units are 0 to 31"),
        ({"removed": [4, 4]}, r"groups\.conv1: removes a unit twice"),
        ({"removed": list(range(32))}, r"groups\.conv1: removes all 32 units"),
        ({"n_units": 40}, "group 'conv1' has 32 units; the plan was for 40"),
        ({"groups": {"conv9": {"n_units": 3, "removed": [0]}}}, "conv9"),
        ({"groups": {"bn1": {"n_units": 3, "removed": [0]}}}, "'bn1': the network has none"),
    ],
)
def test_a_plan_that_is_wrong_is_named(tmp_path, pruned, change, message):
    store = write_run(str(tmp_path), pruned)
    _, plan = files()
    if change.keys() <= {"format", "groups", "dropped"}:
        plan |= change
    else:
        plan["groups"]["conv1"] |= change
    store.publish_json("prune/plan.json", plan)
    with pytest.raises(JobError, match=rf"{re.escape(str(tmp_path))}/prune/plan\.json.*{message}"):
        load_pruned(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"job": {"model": {"factory": 3}}},
        {"job": {"model": {"factory": "no colon"}}},
        {"job": {"model": {"factory": "a:b", "kwargs": [1]}}},
        {"job": {}},
        {"example_shape": None},
        {"example_shape": [1, 1, 8]},
        {"example_shape": [2, 1, 8, 8]},
        {"example_shape": [1, 1, 8.5, 8]},
        {"example_shape": [1, 1, 0, 8]},
        {"stages": ["prune"]},
        {"stages": {"prune": 3}},
    ],
)
def test_a_record_that_is_wrong_is_named(tmp_path, pruned, change):
    run, _ = files()
    write_run(str(tmp_path), pruned).publish_json("run.json", run | change)
    (key,) = change
    with pytest.raises(JobError, match=rf"{re.escape(str(tmp_path))}/run\.json is damaged.*{key}"):
        load_pruned(str(tmp_path))


@pytest.mark.parametrize("shape", [[1, 3, 8, 8], [1, 1, 2, 2], [1, 1, 10**9, 10**9]])
def test_an_example_that_the_network_does_not_take(tmp_path, pruned, shape):
    run, _ = files()
    write_run(str(tmp_path), pruned).publish_json("run.json", run | {"example_shape": shape})
    with pytest.raises(
        JobError,
        match=r"do not fit the network that shapray\.zoo:digits_cnn makes|no image of the shape",
    ):
        load_pruned(str(tmp_path))


def test_another_network_than_that_of_the_run(tmp_path, pruned):
    write_run(str(tmp_path), pruned, kwargs={"num_classes": 7})
    with pytest.raises(JobError, match=r"of another shape: fc2\.weight \(10, 32\) in the file"):
        load_pruned(str(tmp_path))
    write_run(str(tmp_path), pruned, {**REMOVED, "conv1": [0]})
    with pytest.raises(
        JobError, match=r"do not fit the network that shapray\.zoo:digits_cnn makes"
    ):
        load_pruned(str(tmp_path))
    write_run(str(tmp_path), nn.Linear(2, 3))
    with pytest.raises(
        JobError, match=r"its 2 tensors do not fit .*: \d+ missing: conv1\.weight, .* more"
    ):
        load_pruned(str(tmp_path))


def test_a_torn_file_of_weights(tmp_path, pruned):
    store = write_run(str(tmp_path), pruned)
    data = store.read("prune/model.safetensors")
    for length in (4, 100, len(data) - 1):
        store.publish("prune/model.safetensors", data[:length])
        with pytest.raises(JobError, match=rf"not a safetensors file, or damaged \({length} bytes"):
            load_pruned(str(tmp_path))
