import json

import fsspec
import pytest
import torch
from torch import nn

from shapray.errors import JobError
from shapray.network.surgery import prune_model
from shapray.pruning.saved import load_pruned, weights_bytes
from shapray.storage.run_directory import RunDirectory
from shapray.zoo import digits_cnn

EXAMPLE = torch.zeros(1, 1, 8, 8)
REMOVED = {"conv1": [3, 0, 31], "conv3": [1, 2, 15], "fc1": list(range(0, 64, 2))}


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


def keep(n: int, removed: list[int]) -> list[int]:
    return [unit for unit in range(n) if unit not in removed]


def test_several_groups_go_by_the_indices_of_the_original_network():
    model = digits()
    pruned = prune_model(model, EXAMPLE, REMOVED)
    k1, k3, kf = keep(32, REMOVED["conv1"]), keep(16, REMOVED["conv3"]), keep(64, REMOVED["fc1"])
    assert torch.equal(pruned.conv1.weight, model.conv1.weight[k1])
    assert torch.equal(pruned.bn1.running_mean, model.bn1.running_mean[k1])
    assert torch.equal(pruned.conv2.weight, model.conv2.weight[:, k1])
    assert torch.equal(pruned.conv3.weight, model.conv3.weight[k3])
    features = [channel * 4 + position for channel in k3 for position in range(4)]
    assert torch.equal(pruned.fc1.weight, model.fc1.weight[kf][:, features])
    assert torch.equal(pruned.fc1.bias, model.fc1.bias[kf])
    assert torch.equal(pruned.fc2.weight, model.fc2.weight[:, kf])
    assert pruned(images()).shape == (4, 10)


def test_copy_keeps_modes_and_the_original_keeps_everything():
    model = digits()
    model.conv1.weight.requires_grad_(False)
    model.bn1.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruned = prune_model(model, EXAMPLE, REMOVED)
    for network in (model, pruned):
        assert not network.conv1.weight.requires_grad
        assert network.conv2.weight.requires_grad
        assert network.bn1.training
        assert not network.bn2.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    pruned.fc2.bias.data.zero_()  # a parameter that surgery did not touch is a copy, too
    assert torch.equal(model.fc2.bias, before["fc2.bias"])


def test_nothing_removed_is_the_same_network():
    model = digits()
    same = prune_model(model, EXAMPLE, {"conv1": [], "fc1": []})
    assert torch.equal(same(images()), model(images()))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"conv3": range(16)}, "'conv3': all 16 units would go"),
        ({"conv3": [0, 16]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [-1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"conv3": [1, 1]}, r"'conv3': .* distinct, in \[0, 16\)"),
        ({"bn1": [0]}, "'bn1': the network has no Conv2d or Linear of that name"),
        ({"conv9": [0]}, "'conv9': the network has no"),
    ],
)
def test_impossible_plans(removed, message):
    with pytest.raises(ValueError, match=message):
        prune_model(digits(), EXAMPLE, removed)


def test_units_that_are_coupled_or_shared_between_groups():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(1, 4, 1)
            self.b = nn.Conv2d(1, 4, 1)
            self.folded = nn.Conv2d(1, 4, 1)
            self.fc = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            folded = self.folded(x)
            both = [self.a(x) + self.b(x), folded[:, :2] + folded[:, 2:]]
            return self.fc(torch.cat(both, 1).mean((2, 3)))

    with pytest.raises(ValueError, match="'b' shares channels with another group"):
        prune_model(Folded(), EXAMPLE, {"a": [0], "b": [1]})
    with pytest.raises(ValueError, match=r"removing units \[0\] would remove 1 others"):
        prune_model(Folded(), EXAMPLE, {"folded": [0]})


def write_run(url: str, model: nn.Module, removed: dict[str, list[int]], **model_section) -> None:
    images_section = {"source": "callable", "factory": "nobody:calls_it"}
    job = {
        "name": "t",
        "model": {"factory": "shapray.zoo:digits_cnn", **model_section},
        "data": {"calibration": images_section, "evaluation": images_section},
        "output": url,
    }
    sizes = {"conv1": 32, "conv3": 16, "fc1": 64}
    groups = {name: {"n_units": sizes[name], "removed": sorted(u)} for name, u in removed.items()}
    RunDirectory(url).publish("prune/model.safetensors", weights_bytes(model))
    for name, content in {
        "run.json": {"job": job, "example_shape": [1, 1, 8, 8], "versions": {}},
        "prune/plan.json": {"format": 1, "groups": groups, "ratio": 0.3},
    }.items():
        with fsspec.open(f"{url}/{name}", "w") as file:
            json.dump(content, file)


@pytest.mark.parametrize("where", ["local", "memory"])
def test_round_trip(tmp_path, where):
    url = f"{tmp_path}/run" if where == "local" else "memory://surgery/run"
    pruned = prune_model(digits(), EXAMPLE, REMOVED)
    write_run(url, pruned, REMOVED)
    loaded = load_pruned(url + "/")
    assert not loaded.training
    assert torch.equal(loaded(images()), pruned(images()))
    assert loaded.conv1.out_channels == 29


def test_other_memory_layouts_and_shared_tensors_are_saved(tmp_path):
    pruned = prune_model(digits(), EXAMPLE, REMOVED).to(memory_format=torch.channels_last)
    pruned.bn3.weight = pruned.bn3.bias
    write_run(str(tmp_path), pruned, REMOVED)
    loaded = load_pruned(str(tmp_path))
    torch.testing.assert_close(loaded(images()), pruned(images()))


@pytest.mark.parametrize("name", ["run.json", "prune/plan.json", "prune/model.safetensors"])
def test_missing_and_damaged_files_are_named(tmp_path, name):
    write_run(str(tmp_path), prune_model(digits(), EXAMPLE, REMOVED), REMOVED)
    (tmp_path / name).write_text("{")
    with pytest.raises(JobError, match=str(tmp_path)):
        load_pruned(str(tmp_path))
    (tmp_path / name).write_text("{}")
    with pytest.raises(JobError, match=str(tmp_path)):
        load_pruned(str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(JobError, match=f"{name}: no such file"):
        load_pruned(str(tmp_path))


def test_another_network_than_that_of_the_run(tmp_path):
    pruned = prune_model(digits(), EXAMPLE, REMOVED)
    write_run(str(tmp_path), pruned, REMOVED, kwargs={"num_classes": 7})
    with pytest.raises(JobError, match=r"size mismatch for fc2\.weight"):
        load_pruned(str(tmp_path))
    write_run(str(tmp_path), pruned, {**REMOVED, "conv1": [0]})
    with pytest.raises(
        JobError, match=r"do not fit the network that shapray\.zoo:digits_cnn makes"
    ):
        load_pruned(str(tmp_path))
