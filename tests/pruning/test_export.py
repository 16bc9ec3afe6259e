"""The files that a network is written to, and the networks that cannot be written."""

import io
import logging
import subprocess
import sys
import warnings

import pytest
import safetensors.torch
import torch
from networks import Residual, randomise
from plain import without
from torch import nn

from shapray.pruning.export import exports

ALONE = """
import sys
import torch
network = torch.export.load(sys.argv[1]).module()
images, logits = torch.load(sys.argv[2])
torch.testing.assert_close(network(images), logits)
assert network(images[:1]).shape == (1, 5)
assert not any(name.startswith(("shapray", "networks")) for name in sys.modules)
"""


def images(n: int = 4) -> torch.Tensor:
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = randomise(Residual())
    return without(model, images(1), {"stem": [1, 4], "block2.conv1": [0, 2, 3]})


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(x).relu().mean((2, 3)))


class OnValues(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        print("a word")
        warnings.warn("another", stacklevel=1)
        return super().forward(x + 1 if x.sum() > 0 else x - 1)


class FewImages(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[0] in (1, 2, 3)
        return super().forward(x)


class Inverting(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) @ torch.linalg.inv(torch.eye(5) + 0.1)


class OtherWhenTraced(Small):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 if torch.compiler.is_compiling() else 2.0)


@pytest.mark.slow
def test_a_program_is_read_without_this_package(network, tmp_path):
    made = exports(network, images(), ["pt2"])
    assert made.refused == {}
    (tmp_path / "model.pt2").write_bytes(made.files["model.pt2"])
    torch.save((images(7), network(images(7))), tmp_path / "expected.pt")
    command = [sys.executable, "-I", "-c", ALONE, "model.pt2", "expected.pt"]
    subprocess.run(command, cwd=tmp_path, check=True)


def test_an_onnx_file_takes_any_number_of_images(network):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = exports(network, images(1), ["onnx"])
    assert made.refused == {}
    session = onnxruntime.InferenceSession(made.files["model.onnx"])
    (logits,) = session.run(["logits"], {"images": images(7).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), network(images(7)))


def test_the_network_stays_as_it_is_and_no_image_is_written(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    made = exports(network, images(), ["safetensors", "pt2"])
    again = exports(network, images() + 3, ["safetensors", "pt2"])
    assert made == again
    weights = safetensors.torch.load(made.files["model.safetensors"])
    assert weights.keys() == before.keys() == network.state_dict().keys()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(tensor, weights[name])
    assert __file__.encode() not in made.files["model.pt2"]


def test_channels_last_and_frozen_networks():
    network = Small().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    made = exports(network, images(), ["safetensors", "pt2"])
    assert made.files.keys() == {"model.safetensors", "model.pt2"}
    program = torch.export.load(io.BytesIO(made.files["model.pt2"])).module()
    torch.testing.assert_close(program(images()), network(images()))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (
            OnValues,
            "the network cannot be written as a torch.export program: what its forward does "
            "depends on the values in the images (an `if`, `.item()`)",
        ),
        (
            FewImages,
            "the network cannot be written as a torch.export program: its forward is fixed to a "
            "number of images",
        ),
        (
            OtherWhenTraced,
            "written and read back, the network's outputs for 1 image differ: relative error 0.5 "
            "(at most 1e-05)",
        ),
    ],
)
def test_what_cannot_be_written_is_said_and_the_rest_kept(kind, reason):
    found = exports(kind().eval(), images(), ["pt2", "safetensors"])
    assert found.refused == {"pt2": reason}
    assert found.files.keys() == {"model.safetensors"}


def test_an_operator_that_onnx_lacks():
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    found = exports(Inverting().eval(), images(), ["onnx", "pt2"])
    assert found.files.keys() == {"model.pt2"}
    assert "cannot be written as ONNX: " in found.refused["onnx"]
    assert "linalg_inv" in found.refused["onnx"]
    assert "\n" not in found.refused["onnx"]


def test_weights_that_are_no_tensors():
    class Stateful(Small):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 3}

    found = exports(Stateful().eval(), images(), ["safetensors"])
    assert found.files == {}
    assert found.refused["safetensors"].startswith("the network cannot be written as safetensors: ")


def test_the_extra_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = exports(Small().eval(), images(), ["onnx", "safetensors"])
    assert found.files.keys() == {"model.safetensors"}
    assert found.refused["onnx"].startswith("not installed: onnx")
    assert "pip install 'shapray[onnx]'" in found.refused["onnx"]


def test_nothing_is_said_and_nothing_stays_silenced(capfd):
    seen = (warnings.filters[:], logging.root.manager.disable, sys.stdout, sys.stderr)
    exports(OnValues().eval(), images(), ["pt2", "onnx"])
    assert capfd.readouterr() == ("", "")
    assert seen == (warnings.filters, logging.root.manager.disable, sys.stdout, sys.stderr)
