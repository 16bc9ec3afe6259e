"""The compressed network read back from a run's files, and what is said of damaged ones."""

import re

import pytest
import torch
from faulty_s3 import BUCKET, faulty_s3
from tiny import write_job
from torch import nn

from shapray import load_pruned
from shapray.errors import JobError
from shapray.network.surgery import prune_model
from shapray.pruning.saved import weights_bytes
from shapray.run import main
from shapray.storage.run_directory import RunDirectory
from shapray.zoo import digits_cnn

EXAMPLE = torch.zeros(1, 1, 8, 8)
REMOVED = {"conv1": [3, 0, 31], "conv3": [1, 2, 15], "fc1": list(range(0, 64, 2))}
SIZES = {"conv1": 32, "conv3": 16, "fc1": 64}

FACTORIES = """
from torch import nn
from shapray.zoo import digits_cnn

class Pooled(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.conv1, self.conv2, self.pool = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3), pool
        self.last = nn.Linear(8, 10)

    def forward(self, x):
        x = self.conv2(self.conv1(x).relu()).relu().flatten(2)  # (n, 8, 16)
        return self.last(x.amax(2) if self.pool == "max" else x.mean(2))

def build(pool_key, api_key="none"):
    if api_key != "sEcReT":
        raise KeyError(f"no network for the key {api_key}")
    return Pooled(pool_key)

def needs_a_licence(**kwargs):
    raise PermissionError("no licence for api_key=sEcReT")

def a_number():
    return 3
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    """The module ``nets.token`` can be imported."""
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "token.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(tmp_path)


def digits() -> nn.Module:
    torch.manual_seed(0)
    model = digits_cnn()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.bias.data.normal_()
            module.running_mean.normal_()
    return model.eval()


def images() -> torch.Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def files(removed=REMOVED, **model):
    """The contents of run.json and plan.json of a finished run."""
    section = {"source": "callable", "factory": "nobody:calls_it"}
    job = {
        "name": "t",
        "model": {"factory": "shapray.zoo:digits_cnn"} | model,
        "data": {"calibration": section, "evaluation": section},
        "output": "elsewhere",
    }
    run = {
        "job": job,
        "example_shape": [1, 1, 8, 8],
        "stages": {"plan": {"state": "done"}, "prune": {"state": "done"}},
    }
    groups = {name: {"n_units": SIZES[name], "removed": sorted(u)} for name, u in removed.items()}
    return run, {"format": 1, "groups": groups, "ratio": 0.3}


def write_run(url: str, network: nn.Module, removed=REMOVED, **model) -> RunDirectory:
    store = RunDirectory(url)
    run, plan = files(removed, **model)
    store.publish_json("run.json", run)
    store.publish_json("prune/plan.json", plan)
    store.publish("prune/model.safetensors", weights_bytes(network))
    return store


@pytest.fixture(scope="module")
def pruned():
    return prune_model(digits(), EXAMPLE, REMOVED)


# ---- what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["local", "memory"])
def test_round_trip(tmp_path, pruned, where):
    url = f"{tmp_path}/run" if where == "local" else "memory://surgery/run"
    write_run(url, pruned)
    loaded = load_pruned(url + "/")
    assert not loaded.training
    assert torch.equal(loaded(images()), pruned(images()))
    assert loaded.conv1.out_channels == 29


def test_a_path_is_as_good_as_its_text(tmp_path, pruned):
    write_run(str(tmp_path), pruned)
    assert torch.equal(load_pruned(tmp_path)(images()), pruned(images()))


def test_other_memory_layouts_and_shared_tensors_are_saved(tmp_path):
    pruned = prune_model(digits(), EXAMPLE, REMOVED).to(memory_format=torch.channels_last)
    pruned.bn3.weight = pruned.bn3.bias
    write_run(str(tmp_path), pruned)
    loaded = load_pruned(str(tmp_path))
    torch.testing.assert_close(loaded(images()), pruned(images()))


def test_a_store_that_stumbles_is_asked_again(tmp_path, pruned):
    with faulty_s3() as server:
        url = f"s3://{BUCKET}/{tmp_path.name}"
        write_run(url, pruned)
        server.share_refused, before = 0.5, server.n_refused
        loaded = load_pruned(url)
        assert server.n_refused > before
    assert torch.equal(loaded(images()), pruned(images()))


def test_the_original_weights_and_the_rest_of_the_job_are_not_needed(tmp_path, pruned):
    run, _ = files(weights="s3://gone/w.safetensors")
    run["job"] = {"model": run["job"]["model"], "of a later version": {"x": 1}}
    write_run(str(tmp_path), pruned).publish_json("run.json", run)
    assert torch.equal(load_pruned(str(tmp_path))(images()), pruned(images()))


# ---- arguments that sound like credentials -------------------------------------------------------


def test_the_factory_is_called_as_in_the_run(tmp_path, factories, capsys):
    """Whose name has a token in it, with a key that is none, and one that is."""
    url = f"memory://{tmp_path.name}"
    job = write_job(
        tmp_path,
        model={
            "factory": "nets.token:build",
            "kwargs": {"pool_key": "max", "api_key": "sEcReT"},
        },
        score={"permutations": 2, "precision": "float32"},
        prune={"random_seeds": [], "ratio": 0.3},
        output=url,
    )
    assert main([str(job)]) == 0
    store = RunDirectory(url)
    for path in store.fs.find(store.root):
        assert b"sEcReT" not in store.fs.cat_file(path), path
    assert "sEcReT" not in "".join(capsys.readouterr())

    with pytest.raises(JobError) as refused:
        load_pruned(url)
    assert "model.kwargs.api_key" in str(refused.value)
    assert f"load_pruned('{url}', kwargs={{'api_key': ...}})" in str(refused.value)
    network = load_pruned(url, kwargs={"api_key": "sEcReT"})
    assert network.pool == "max"
    metrics = store.read_json("prune/metrics.json")
    assert sum(p.numel() for p in network.parameters()) == metrics["after"]["parameters"]

    with pytest.raises(JobError, match=r"run\.json: its network cannot be built: .*no network for"):
        load_pruned(url, kwargs={"api_key": "wrong"})


def test_what_an_earlier_version_hid_can_be_given(tmp_path, pruned):
    run_kwargs = {"num_classes": "***", "nested": {"token": "***"}}
    write_run(str(tmp_path), pruned, kwargs=run_kwargs)
    with pytest.raises(JobError, match=r"model\.kwargs\.num_classes, model\.kwargs\.nested could"):
        load_pruned(str(tmp_path))
    with pytest.raises(JobError, match=r"kwargs={'nested': \.\.\.}"):
        load_pruned(str(tmp_path), kwargs={"num_classes": 10})
    write_run(str(tmp_path), pruned, kwargs={"num_classes": "***"})
    loaded = load_pruned(str(tmp_path), kwargs={"num_classes": 10})
    assert torch.equal(loaded(images()), pruned(images()))


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("needs_a_licence", "failed: PermissionError: no licence"),
        ("a_number", "returned a int, not a torch.nn.Module"),
        ("nothing", "module 'nets.token' has no 'nothing'"),
    ],
)
def test_what_the_factory_does_is_told(tmp_path, pruned, factories, factory, message):
    write_run(str(tmp_path), pruned, factory=f"nets.token:{factory}")
    with pytest.raises(JobError) as refused:
        load_pruned(str(tmp_path))
    assert f"{tmp_path}/run.json: its network cannot be built: " in str(refused.value)
    assert message in str(refused.value)
    assert "sEcReT" not in str(refused.value)


# ---- files that are missing, damaged or of something else ----------------------------------------


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
        ({"score": {"state": "done"}}, "the run had no stage that prunes"),
        ({"prune": {"state": "done"}}, "it was deleted"),
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
        ({"groups": {"bn1": {"n_units": 3, "removed": [0]}}}, "a BatchNorm2d is no root"),
    ],
)
def test_a_plan_that_is_wrong_is_named(tmp_path, pruned, change, message):
    store = write_run(str(tmp_path), pruned)
    _, plan = files()
    if change.keys() <= plan.keys():
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
