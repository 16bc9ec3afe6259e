"""Load the network of a job: import its factory, read its weights, digest them."""

import difflib
import importlib
import io
import os
import pickle
import re
import warnings
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import fsspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from shapray.config import Model
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.storage.retry import patiently

N_NAMED = 4  # tensors named in a message before "and n more"


def import_callable(spec: str, key: str) -> Callable[..., Any]:
    """The callable named by ``module:callable`` (dots allowed on both sides).

    Args:
        spec: for example ``torchvision.models:resnet50``.
        key: the job's key it comes from, for messages.
    Raises:
        JobError: the module does not import, has no such name, or the name is not callable.
    """
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise JobError(f"{key}: '{spec}' is not of the form module:callable")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise JobError(
            f"{key}: cannot import module '{module_name}' of '{spec}': {_cause(error)}"
        ) from error
    try:
        found = attrgetter(name)(module)
    except AttributeError as error:
        near = difflib.get_close_matches(name, dir(module))
        hint = f"; close to it: {', '.join(near)}" if near else ""
        raise JobError(f"{key}: module '{module_name}' has no '{name}'{hint}") from error
    if not callable(found):
        raise JobError(f"{key}: '{spec}' is a {type(found).__name__}, not a callable")
    return found


def build_model(model: Model, state: dict[str, Tensor] | None = None) -> nn.Module:
    """The job's network with its weights: eval mode, float32, on the CPU.

    The factory runs with a fixed CPU seed, so that a network without a weights file is the same in
    every process.

    Args:
        model: the job's ``model`` section.
        state: weights already read; by default ``model.weights`` is read (null: the factory's own).
    Raises:
        JobError: the factory fails, the file cannot be read, or the weights do not fit.
    """
    factory = import_callable(model.factory, "model.factory")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        try:
            network = factory(**model.kwargs)
        except Exception as error:  # the user's code: whatever it says is the message
            raise JobError(
                f"model.factory: {model.factory}(**{model.kwargs}) failed: {_cause(error)}"
            ) from error
    if not isinstance(network, nn.Module):
        raise JobError(
            f"model.factory: {model.factory} returned a {type(network).__name__}, "
            "not a torch.nn.Module"
        )
    if state is None and model.weights is not None:
        state = load_weights(model.weights)
    if state is not None:
        _fill(network, state, model)
    return network.to(device="cpu", dtype=torch.float32).eval()


def load_weights(url: str) -> dict[str, Tensor]:
    """Tensors by name from a ``.safetensors``, ``.pt`` or ``.pth`` file at any fsspec URL.

    PyTorch files are read as weights only: nothing in them is executed. A ``{"state_dict": ...}``
    wrapper is taken off.

    Raises:
        JobError: no such file, another format, damaged, or it holds more than weights.
    """
    suffix = os.path.splitext(url.partition("?")[0])[1].lower()
    if suffix not in {".safetensors", ".pt", ".pth"}:
        raise JobError(
            f"model.weights: {without_credentials(url)} is not a .safetensors, .pt or .pth file; "
            "those are the formats read"
        )
    try:
        fs, path = fsspec.url_to_fs(os.path.expanduser(url))
        content = patiently(lambda: fs.cat_file(path))
    except FileNotFoundError as error:
        raise JobError(f"model.weights: {without_credentials(url)}: no such file") from error
    except Exception as error:  # no rights, unknown protocol, no driver: each its own kinds
        raise JobError(
            f"model.weights: cannot open {without_credentials(url)}: {_cause(error)}"
        ) from error
    state = (
        _parse_safetensors(content, url) if suffix == ".safetensors" else _parse_pt(content, url)
    )
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not (isinstance(state, dict) and state and all(map(torch.is_tensor, state.values()))):
        held = f"the keys {_some(list(state))}" if isinstance(state, dict) else type(state).__name__
        raise JobError(
            f"model.weights: {without_credentials(url)} holds {held}; expected tensors by name, "
            "or those under 'state_dict'"
        )
    return state


def _cause(error: BaseException) -> str:
    return without_credentials(f"{type(error).__name__}: {error}")


def _parse_safetensors(content: bytes, url: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except SafetensorError as error:
        raise JobError(
            f"model.weights: {without_credentials(url)} is not a safetensors file, or damaged "
            f"({len(content)} bytes): {error}"
        ) from error


def _parse_pt(content: bytes, url: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which are refused anyway
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise JobError(
                f"model.weights: {without_credentials(url)} is not a PyTorch file"
            ) from error
        raise JobError(
            f"model.weights: {without_credentials(url)} holds a pickled {foreign[1]}, not only "
            "weights; pickles can run code, so only tensors are read: save model.state_dict(), "
            "or safetensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise JobError(
            f"model.weights: {without_credentials(url)} is not a PyTorch file, or damaged "
            f"({len(content)} bytes): {_cause(error)}"
        ) from error


def _fill(network: nn.Module, state: dict[str, Tensor], model: Model) -> None:
    """Copy `state` into `network`; what does not fit is an error, never skipped."""
    wanted = network.state_dict()
    if not wanted.keys() & state.keys():  # saved from DataParallel
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    # BatchNorm's count of training batches plays no part in inference; many files leave it out.
    missing = [
        name
        for name in wanted
        if name not in state and name.rpartition(".")[2] != "num_batches_tracked"
    ]
    unexpected = [name for name in state if name not in wanted]
    misshapen = [
        f"{name} {tuple(state[name].shape)} in the file, {tuple(tensor.shape)} in the network"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    not_finite = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not tensor.isfinite().all()
    ]
    findings = [
        f"  {len(names)} {what}: {_some(names)}"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", misshapen),
            ("with values that are not finite", not_finite),
        )
        if names
    ]
    if findings:
        raise JobError(
            f"model.weights: {without_credentials(model.weights or 'the given weights')} "
            f"({len(state)} tensors) do not fit {model.factory}(**{model.kwargs}) "
            f"({len(wanted)} tensors):\n" + "\n".join(findings)
        )
    network.load_state_dict(state, strict=False)


def _some(names: list[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:N_NAMED])
    return shown + (f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else "")
