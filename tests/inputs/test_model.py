"""Networks and weights: what is read, what is refused, and with which words."""

import os
import pickle

import fsspec
import pytest
import safetensors.torch
import torch
from torch import nn

from shapray import zoo
from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.digest import weights_digest
from shapray.inputs.model import build_model, import_callable, load_weights

DIGITS = "shapray.zoo:digits_cnn"


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(7)
    return zoo.digits_cnn()


def test_safetensors_from_any_filesystem(network):
    with fsspec.open("memory://weights/net.safetensors", "wb") as file:
        file.write(safetensors.torch.save(network.state_dict()))
    read = build_model(Model(factory=DIGITS, weights="memory://weights/net.safetensors"))
    assert weights_digest(read) == weights_digest(network)
    assert not read.training


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pt_forms(network, tmp_path, wrapped, prefix):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "net.pt")
    read = build_model(Model(factory=DIGITS, weights=str(tmp_path / "net.pt")))
    assert weights_digest(read) == weights_digest(network)


def test_half_precision_weights_become_float32(network, tmp_path):
    safetensors.torch.save_file(network.half().state_dict(), tmp_path / "net.safetensors")
    read = build_model(Model(factory=DIGITS, weights=str(tmp_path / "net.safetensors")))
    assert {p.dtype for p in read.parameters()} == {torch.float32}


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("ran-the-pickle",))


def test_pickles_are_refused_and_not_run(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(network, "whole.pt")
    with pytest.raises(JobError, match=r"whole\.pt holds a pickled .*DigitsCNN.*state_dict"):
        load_weights("whole.pt")
    torch.save({"state_dict": Payload()}, "evil.pt")
    with pytest.raises(JobError, match=r"evil\.pt holds a pickled .*mkdir"):
        load_weights("evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(JobError, match=r"plain\.pt"):
        load_weights("plain.pt")
    assert not (tmp_path / "ran-the-pickle").exists()


@pytest.mark.parametrize("name", ["bad.pt", "bad.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights in here", b"PK\x03\x04 torn"])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError, match=name):
        load_weights(str(tmp_path / name))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(JobError, match=r"none\.safetensors: no such file"):
        load_weights(str(tmp_path / "none.safetensors"))
    with pytest.raises(JobError, match=r"net\.onnx is not a \.safetensors, \.pt or \.pth"):
        load_weights("net.onnx")
    with pytest.raises(JobError, match="cannot open nowhere://"):
        load_weights("nowhere://bucket/net.pt")
    torch.save({"epoch": 3, "weights": {}}, tmp_path / "odd.pt")
    with pytest.raises(JobError, match="holds the keys epoch, weights; expected tensors by name"):
        load_weights(str(tmp_path / "odd.pt"))


def test_misfit_lists_what_does_not_fit(network):
    state = network.state_dict()
    del state["fc1.bias"]
    state["fc3.bias"] = torch.zeros(10)
    state["fc2.weight"] = torch.zeros(11, 64)
    with pytest.raises(JobError) as caught:
        build_model(Model(factory=DIGITS), state)
    message = str(caught.value)
    assert "1 missing: fc1.bias" in message
    assert "1 unexpected: fc3.bias" in message
    assert "fc2.weight (11, 64) in the file, (10, 64) in the network" in message


def test_missing_batch_counts_are_no_misfit(network):
    state = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
    read = build_model(Model(factory=DIGITS), state)
    assert torch.equal(read.get_parameter("fc1.weight"), network.get_parameter("fc1.weight"))


def test_own_initialisation_is_the_same_everywhere_and_leaves_the_stream_alone():
    torch.manual_seed(1)
    first = build_model(Model(factory=DIGITS))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    assert weights_digest(build_model(Model(factory=DIGITS))) == weights_digest(first)


def test_torchvision_factory():
    model = Model(
        factory="torchvision.models:squeezenet1_1", kwargs={"weights": None, "num_classes": 5}
    )
    assert build_model(model)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("no.such.place:net", "cannot import module 'no.such.place'.*ModuleNotFoundError"),
        ("shapray.zoo:resnet21", "has no 'resnet21'; close to it: .*resnet20"),
        ("shapray.zoo:F", "is a module, not a callable"),
        ("resnet20", "not of the form module:callable"),
    ],
)
def test_factories_that_do_not_import(spec, words):
    with pytest.raises(JobError, match=f"model.factory: .*{words}"):
        import_callable(spec, "model.factory")


def test_factories_that_fail():
    with pytest.raises(JobError, match=r"digits_cnn.*unexpected keyword argument 'depth'"):
        build_model(Model(factory=DIGITS, kwargs={"depth": 3}))
    with pytest.raises(JobError, match=r"returned a OrderedDict, not a torch\.nn\.Module"):
        build_model(Model(factory="collections:OrderedDict"))


def test_digest_sees_every_bit(network):
    before = weights_digest(network)
    network.get_buffer("bn1.running_mean")[3] += 1e-6
    assert weights_digest(network) != before


def test_credentials_are_not_shown():
    with pytest.raises(JobError) as caught:
        load_weights("nowhere://user:hunter2@host/net.pt")
    assert "hunter2" not in str(caught.value)


def test_weights_that_are_not_finite_are_named(network):
    network.fc1.weight.data[3, 4] = torch.nan
    section = Model(factory=DIGITS, weights="w.safetensors")
    with pytest.raises(JobError, match=r"1 with values that are not finite: fc1\.weight"):
        build_model(section, network.state_dict())
