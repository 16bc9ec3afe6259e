"""The compressed network read back from a run's files."""

from importlib import import_module

import pytest
import torch
from cut_digits import EXAMPLE, REMOVED, SIZES, digits, images
from faulty_s3 import BUCKET, faulty_s3
from plain import without
from saved_run import files, write_run
from tiny import write_job
from torch import nn

from shapray import load_pruned
from shapray.errors import JobError
from shapray.network.find import find_groups
from shapray.network.index_maps import kept_channels
from shapray.network.unreached import drop_unreached
from shapray.pruning.cuts import Cut, plan_json
from shapray.pruning.saved import weights_bytes
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

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
    pruned = without(digits(), EXAMPLE, REMOVED).to(memory_format=torch.channels_last)
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


def test_the_plan_has_the_old_channels_of_every_layer_that_changed(tmp_path, pruned):
    model = digits()
    groups = [group for group in find_groups(model, EXAMPLE) if group.name in SIZES]
    removed = {name: sorted(units) for name, units in REMOVED.items()}
    cut = Cut("shapley-0.3", "shapley", None, 0.3, removed, ())
    kept = kept_channels(model, find_groups(model, EXAMPLE), REMOVED)
    store = write_run(str(tmp_path), pruned)
    store.publish_json("prune/plan.json", plan_json(cut, groups, kept, {}, program=False))
    modules = store.read_json("prune/plan.json")["modules"]
    assert set(modules) == {"conv1", "bn1", "conv2", "conv3", "bn3", "fc1", "fc2"}
    left = [unit for unit in range(32) if unit not in REMOVED["conv1"]]
    assert modules["conv1"] == {"outputs": left, "inputs": None}
    assert modules["conv2"] == {"outputs": None, "inputs": left}
    outputs, inputs = modules["fc1"]["outputs"], modules["fc1"]["inputs"]
    assert torch.equal(pruned.fc1.weight, model.fc1.weight[outputs][:, inputs])
    assert torch.equal(load_pruned(str(tmp_path))(images()), pruned(images()))


def test_what_is_read_back_trains_and_can_be_cut_again(tmp_path, pruned):
    write_run(str(tmp_path), pruned)
    network = load_pruned(str(tmp_path)).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    nn.functional.cross_entropy(network(images()), torch.tensor([0, 1, 2, 3])).backward()
    optimiser.step()
    for name, parameter in network.named_parameters():
        assert not torch.equal(parameter, pruned.get_parameter(name)), name
    again = without(network.eval(), EXAMPLE, {"conv1": [0]})
    assert torch.equal(again.conv1.weight, network.conv1.weight[1:])


def test_what_was_dropped_is_not_there_when_it_is_read_back(tmp_path, factories):
    run, plan = files({"conv1": [0, 4]}, factory="nets.token:Aided")
    plan["groups"]["conv1"]["n_units"] = 6
    model = import_module("nets.token").Aided().eval()
    network = without(model, EXAMPLE, {"conv1": [0, 4]})
    plan["dropped"] = drop_unreached(network, model, EXAMPLE).settings
    assert plan["dropped"] == {"aid": None, "with_aid": False}
    store = RunDirectory(str(tmp_path))
    store.publish_json("run.json", run)
    store.publish_json("prune/plan.json", plan)
    store.publish("prune/model.safetensors", weights_bytes(network))
    loaded = load_pruned(str(tmp_path))
    assert torch.equal(loaded(images()), network(images()))
    assert loaded.train()(images()).shape == (4, 10)


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
        prune={"random_seeds": [], "ratio": 0.3, "export": []},
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


def test_another_cut_of_a_run_by_its_name(tmp_path, pruned):
    store = write_run(str(tmp_path), pruned)
    other = digits()
    store.publish("prune/whole/model.safetensors", weights_bytes(other))
    store.publish_json(
        "prune/whole/plan.json",
        {"format": 1, "groups": {name: {"n_units": n, "removed": []} for name, n in SIZES.items()}},
    )
    loaded = load_pruned(str(tmp_path), name="whole")
    assert torch.equal(loaded(images()), other(images()))
    with pytest.raises(JobError, match=r"prune/half/plan\.json: no such file; .*: whole"):
        load_pruned(str(tmp_path), name="half")
