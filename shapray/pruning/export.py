"""The compressed network in files that others read, each proved by reading it back."""

import contextlib
import copy
import functools
import importlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import safetensors.torch
import torch
from torch import Tensor, nn

from shapray.inputs.outputs import with_one_logit
from shapray.inputs.weights import put_weights
from shapray.network.check import disagreement
from shapray.pruning.saved import weights_bytes
from shapray.storage import names
from shapray.text import one_line

TOLERANCE = 1e-5  # of the largest output, between a file and the network that it was made of
BATCHES = (1, 3)  # numbers of images to compare at
_TRACED = 2  # images; a program that is fixed to their number fails at the others
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exports:
    """Files, and why there are not more."""

    files: dict[str, bytes]
    """``model.<format>`` -> its content."""
    refused: dict[str, str]
    """Format -> the reason, in one line."""


def exports(network: nn.Module, images: Tensor, formats: Sequence[str]) -> Exports:
    """A network in several formats, for any number of images at once.

    - ``safetensors``: the weights alone.
    - ``pt2``: a program that ``torch.export.load`` reads without the network's class, fixed to
      eval mode.
    - ``onnx``: the same for other runtimes, from ``images`` to ``logits``; needs ``shapray[onnx]``.

    Every file is read back and run on images. One whose outputs differ from the network's by more
    than `TOLERANCE` is refused, like one that cannot be written. No file holds the images, or a
    path of this machine.

    Args:
        network: in eval mode, on the CPU; left as it is.
        images: (n, C, H, W) float32, a few that the network was evaluated on.
        formats: of those above.
    """
    assert not network.training
    unknown = set(formats) - _FORMATS.keys()
    assert not unknown, unknown
    made = Exports({}, {})
    with _quietly():
        source = _Source(with_one_logit(copy.deepcopy(network)), torch.zeros_like(images[:1]))
        for name in formats:
            try:
                made.files[names.of_network(name)] = _proved(_FORMATS[name], source, images)
            except _Refused as error:
                made.refused[name] = str(error)
    return made


class _Refused(Exception):
    """Why a format cannot be had, in one line."""


class _Source:
    """A network to write, and the program that more than one format is written from."""

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.network = network
        self._example = example

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        program = torch.export.export(
            self.network,
            (self._example.repeat(_TRACED, 1, 1, 1),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            strict=False,
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # the paths of the user's files
        return program


@dataclass(frozen=True)
class _Format:
    words: str
    write: Callable[[_Source], bytes]
    read: Callable[[bytes, nn.Module], Callable[[Tensor], Tensor]]
    """Content, and the network that it was made of -> images to logits."""


def _write_weights(source: _Source) -> bytes:
    return weights_bytes(source.network)


def _read_weights(data: bytes, network: nn.Module) -> nn.Module:
    emptied = copy.deepcopy(network)
    for tensor in emptied.state_dict().values():
        tensor.zero_()
    put_weights(emptied, safetensors.torch.load(data))
    return emptied


def _write_program(source: _Source) -> bytes:
    content = io.BytesIO()
    torch.export.save(source.program, content)
    return content.getvalue()


def _read_program(data: bytes, _: nn.Module) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(data)).module()


def _write_onnx(source: _Source) -> bytes:
    absent = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise _Refused(
            f"not installed: {', '.join(absent)}; pip install 'shapray[onnx]' has all that it needs"
        )
    program = torch.onnx.export(
        source.program,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def _read_onnx(data: bytes, _: nn.Module) -> Callable[[Tensor], Tensor]:
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # nothing but the end of the process
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


_FORMATS = {
    "safetensors": _Format("safetensors", _write_weights, _read_weights),
    "pt2": _Format("a torch.export program", _write_program, _read_program),
    "onnx": _Format("ONNX", _write_onnx, _read_onnx),
}


def _proved(form: _Format, source: _Source, images: Tensor) -> bytes:
    """A file's content, once it has been read back and found right."""
    with _or_refused(f"the network cannot be written as {form.words}"):
        data = form.write(source)
    with _or_refused(f"the network was written as {form.words}, and does not run read back"):
        read = form.read(data, source.network)
        for n in BATCHES:
            _compare(read, source.network, images[torch.arange(n) % len(images)])
    return data


def _compare(read: Callable[[Tensor], Tensor], network: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        found, right = read(batch.clone()), network(batch.clone())
    if found.shape == right.shape:
        difference = disagreement(found, right, TOLERANCE)
    else:
        difference = f"are of shape {tuple(found.shape)}, not {tuple(right.shape)}"
    if difference:
        raise _Refused(
            f"written and read back, the network's outputs for {len(batch)} "
            f"image{'s' * (len(batch) > 1)} {difference} (at most {TOLERANCE:g})"
        )


@contextlib.contextmanager
def _or_refused(what_failed: str) -> Iterator[None]:
    try:
        yield
    except _Refused:
        raise
    except Exception as error:  # exporters raise anything, the network's own errors among them
        raise _Refused(f"{what_failed}: {_in_words(error)}") from error


def _in_words(error: Exception) -> str:
    """The first cause, as exporters wrap it in what they were doing."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    said = f"{type(error).__name__} {error}"
    if "specialized" in said or "Constraints violated" in said:
        return "its forward is fixed to a number of images"
    if "DataDependent" in said or "data-dependent" in said:
        return "what its forward does depends on the values in the images (an `if`, `.item()`)"
    return one_line(error)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Exporters print, warn and log what they meet; what matters of it is in their errors."""
    logged = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(logged)
