"""Weights files: what is read, what is refused, and with which words."""

import io
import os
import pickle

import fsspec
import pytest
import safetensors.torch
import torch
from torch import nn

from shapray import zoo
from shapray.errors import JobError
from shapray.inputs.weights import load_weights, misfits, put_weights, without_prefix


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("ran-the-pickle",))


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(7)
    return zoo.digits_cnn().state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["net.pt", "net.pth.tar", "net.ckpt", "net.bin", "net"])
def test_the_content_says_what_a_file_is(state, tmp_path, name):
    file = tmp_path / name
    torch.save(state, file)
    assert same(load_weights(str(file)), state)
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert same(load_weights(str(file)), state)
    safetensors.torch.save_file(state, file)
    assert same(load_weights(str(file)), state)


def test_any_filesystem(state):
    with fsspec.open("memory://weights/net.safetensors", "wb") as file:
        file.write(safetensors.torch.save(state))
    assert same(load_weights("memory://weights/net.safetensors"), state)


# -- checkpoints of training scripts


@pytest.mark.parametrize(
    "checkpoint",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {}},
        lambda state: {"net": state, "acc": 93.0},
        lambda state: {"model": state, "ema": None, "args": ["--lr", "1e-3"]},
        lambda state: {"model_state_dict": state, "best": torch.tensor(0.9)},
        lambda state: {"state_dict": state, "state_dict_ema": state},  # as it is called, always
        lambda state: {"other": {"x": torch.zeros(3)}, "model": state},
        lambda state: {"queue": {f"{i}": torch.zeros(1) for i in range(99)}, "model": state},
    ],
)
def test_the_one_entry_of_a_checkpoint_that_fits_is_taken(state, tmp_path, checkpoint):
    torch.save(checkpoint(state), tmp_path / "net.pt")
    assert same(load_weights(str(tmp_path / "net.pt"), state), state)


def test_of_several_entries_that_fit_none_is_taken(state, tmp_path):
    torch.save({"model": state, "model_ema": state, "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(JobError, match=r"weights: .*several networks that fit \(model, model_ema"):
        load_weights(str(tmp_path / "net.pt"), state)


def test_if_none_fits_it_is_the_largest_that_does_not(state, tmp_path):
    fewer = {name: state[name] for name in list(state)[1:]}
    torch.save({"x": {"y": torch.zeros(1)}, "model": fewer}, tmp_path / "net.pt")
    assert same(load_weights(str(tmp_path / "net.pt"), state), fewer)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.net."])
def test_names_that_a_wrapper_has_lengthened(state, prefix):
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert same(without_prefix(wrapped, state), state)
    wrapped["loss.weight"] = torch.zeros(2)
    assert misfits(without_prefix(wrapped, state), state) == ["1 unexpected: loss.weight"]


def test_names_that_are_right_stay(state):
    assert same(without_prefix(state, state), state)
    inner = {"net.weight": torch.zeros(1), "weight": torch.zeros(1)}
    assert same(without_prefix(inner, inner), inner)


# -- types of tensors


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2],
)
def test_floats_of_every_size_fit(state, dtype, tmp_path):
    stored = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    safetensors.torch.save_file(stored, tmp_path / "net.safetensors")
    found = load_weights(str(tmp_path / "net.safetensors"), state)
    assert found["fc1.weight"].dtype == dtype
    assert misfits(found, state) == []


@pytest.mark.parametrize(
    ("tensor", "kind"),
    [
        (torch.zeros(2, 4, dtype=torch.int8), "int8"),
        (torch.zeros(2, 4, dtype=torch.complex64), "complex64"),
        (torch.zeros(2, 4).to_sparse(), "float32"),
        (torch.zeros(2, 4, device="meta"), "float32"),
    ],
)
def test_tensors_that_are_no_float32_are_named_with_their_type(tensor, kind):
    wanted = {"weight": torch.zeros(2, 4), "n": torch.tensor(0)}
    assert misfits({"weight": tensor, "n": torch.tensor(3)}, wanted) == [
        f"1 that do not read as float32: weight {kind}"
    ]


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="an older PyTorch")
def test_packed_floats_are_no_float32():
    packed = torch.zeros(2, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    assert misfits({"weight": packed}, {"weight": torch.zeros(2, 4)}) == [
        "1 that do not read as float32: weight float4_e2m1fn_x2"
    ]


def test_values_that_are_not_finite_are_named():
    wanted = {"a": torch.zeros(2), "b": torch.zeros(2)}
    too_large = torch.tensor([0, 1e300], dtype=torch.float64)  # for float32
    found = {"a": torch.tensor([0, torch.nan]), "b": too_large}
    assert misfits(found, wanted) == ["2 with values that are not finite: a, b"]


# -- what is refused


def test_pickles_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(zoo.digits_cnn(), "whole.pt")
    with pytest.raises(JobError, match=r"whole\.pt holds a pickled .*DigitsCNN.*state_dict"):
        load_weights("whole.pt")
    torch.save({"state_dict": Payload()}, "evil.pt")
    with pytest.raises(JobError, match=r"evil\.pt holds a pickled .*mkdir"):
        load_weights("evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(JobError, match=r"plain\.pt"):
        load_weights("plain.pt")
    assert not (tmp_path / "ran-the-pickle").exists()


@pytest.mark.parametrize(
    "content", [b"", b"no weights in here", b"PK\x03\x04 torn", b"\x80\x02}q", b"12345678{torn"]
)
def test_damaged_files(tmp_path, content):
    (tmp_path / "bad.pt").write_bytes(content)
    with pytest.raises(JobError, match=r"model\.weights: .*bad\.pt is "):
        load_weights(str(tmp_path / "bad.pt"), key="model.weights")


@pytest.mark.parametrize("kind", ["safetensors", "PyTorch"])
def test_a_file_that_is_cut_off(state, tmp_path, kind):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    whole = safetensors.torch.save(state) if kind == "safetensors" else buffer.getvalue()
    for length in range(0, len(whole), len(whole) // 40):
        (tmp_path / "net").write_bytes(whole[:length])
        with pytest.raises(JobError, match="net is "):
            load_weights(str(tmp_path / "net"))


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(JobError, match=r"none\.safetensors: no such file"):
        load_weights(str(tmp_path / "none.safetensors"))
    with pytest.raises(JobError, match="cannot open nowhere://"):
        load_weights("nowhere://bucket/net.pt")
    for weights in ({}, {"a": 1}, {0: torch.zeros(1)}):
        torch.save({"epoch": 3, "weights": weights}, tmp_path / "odd.pt")
        with pytest.raises(JobError, match="holds the keys epoch, weights; expected tensors"):
            load_weights(str(tmp_path / "odd.pt"))
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(JobError, match="holds no names at all; expected tensors by name"):
        load_weights(str(tmp_path / "list.pt"))
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(JobError, match=r"script\.pt is a TorchScript program; .*state_dict"):
        load_weights(str(tmp_path / "script.pt"))


def test_credentials_are_not_shown():
    with pytest.raises(JobError) as caught:
        load_weights("nowhere://user:hunter2@host/net.pt")
    assert "hunter2" not in str(caught.value)


class Versioned(nn.Linear):
    """As MNASNet of torchvision, asks which version of it a state is of."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version") not in (1, 2):
            raise ValueError("version should be set to 1 or 2")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


def test_tensors_that_fit_are_of_the_networks_own_version():
    before, after = Versioned(3, 2), Versioned(3, 2)
    put_weights(after, dict(before.state_dict()))
    assert torch.equal(after.weight, before.weight)
