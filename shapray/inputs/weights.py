"""Weights files: tensors by name, whatever a training script has wrapped around them."""

import io
import os
import pickle
import re
import warnings
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import fsspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from shapray.constants.wrappers import plain_name
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.user_code import cause
from shapray.storage.retry import patiently
from shapray.text import some

State = Mapping[str, Tensor]


def load_weights(url: str, wanted: State | None = None, key: str = "weights") -> dict[str, Tensor]:
    """Tensors by name from a safetensors or PyTorch file; the content says which it is.

    PyTorch files are read as weights only: nothing in them is executed. Of a training checkpoint,
    the entry is taken that is nothing but tensors and fits.

    Args:
        url: at any fsspec file system.
        wanted: the network's own tensors, to choose between several entries.
        key: where the file was named, for messages.
    Raises:
        JobError: no such file, another format, damaged, it holds more than weights, or no entry or
            several could be meant.
    """
    shown = f"{key}: {without_credentials(url)}"
    try:
        fs, path = fsspec.url_to_fs(os.path.expanduser(url))
        content = patiently(lambda: fs.cat_file(path))
    except FileNotFoundError as error:
        raise JobError(f"{shown}: no such file") from error
    except Exception as error:  # no rights, unknown protocol, no driver: each its own kinds
        raise JobError(f"{key}: cannot open {without_credentials(url)}: {cause(error)}") from error
    is_safetensors = content[8:9] == b"{"  # after the length of its header
    found = (_parse_safetensors if is_safetensors else _parse_pt)(content, shown)
    states = _states(found)
    if not states:
        held = f"the keys {some(list(found))}" if isinstance(found, dict) else "no names at all"
        raise JobError(
            f"{shown} holds {held}; expected tensors by name, or an entry that is just these"
        )
    fitting = [
        name
        for name, state in states.items()
        if wanted is None or not misfits(without_prefix(state, wanted), wanted)
    ]
    if not fitting:  # whoever compares will say what does not fit
        return max(states.values(), key=len)
    if len(fitting) > 1 and "state_dict" not in fitting:
        raise JobError(
            f"{shown} holds the tensors of several networks that fit ({some(fitting)}); save the "
            "one that is meant in a file of its own"
        )
    return states["state_dict" if "state_dict" in fitting else fitting[0]]


def without_prefix(state: State, wanted: State) -> dict[str, Tensor]:
    """`state` without what wrappers (DataParallel, torch.compile, Lightning) put into its names:
    the beginning after which the most names are wanted ones, and what is theirs in between."""
    beginnings = Counter(
        name[:start]
        for name in state
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        if name[start:] in wanted
    )
    prefix = max(beginnings, key=lambda found: (beginnings[found], -len(found)), default="")
    shortened = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return {
        name if name in wanted else plain_name(name): tensor for name, tensor in shortened.items()
    }


def put_weights(network: nn.Module, state: State) -> None:
    """Give a network tensors that fit it, see `misfits`; in place.

    Some classes ask which version of them wrote a state (MNASNet refuses one that does not say).
    Tensors by name do not say; what fits is of the network's own.
    """
    versioned = OrderedDict(state)
    versioned._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    network.load_state_dict(versioned, strict=False)


def misfits(state: State, wanted: State) -> list[str]:
    """What keeps `state` from being loaded where the tensors `wanted` are, a line each."""
    shared = [name for name in wanted if name in state]
    floating = [name for name in shared if wanted[name].is_floating_point()]
    as_float32 = {name: _float32(state[name]) for name in floating}
    findings = {
        # BatchNorm's count of training batches plays no part in inference; many files leave it out.
        "missing": [
            name
            for name in wanted
            if name not in state and name.rpartition(".")[2] != "num_batches_tracked"
        ],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} in the file, {tuple(wanted[name].shape)} in the "
            "network"
            for name in shared
            if state[name].shape != wanted[name].shape
        ],
        "that do not read as float32": [
            f"{name} {str(state[name].dtype).removeprefix('torch.')}"
            for name, tensor in as_float32.items()
            if tensor is None
        ],
        "with values that are not finite": [
            name
            for name, tensor in as_float32.items()
            if tensor is not None
            and tensor.shape == wanted[name].shape
            # a mask may be infinite where the network's own is
            and not (tensor.isfinite() | ~wanted[name].float().isfinite()).all()
        ],
    }
    return [f"{len(names)} {what}: {some(names)}" for what, names in findings.items() if names]


def _float32(tensor: Tensor) -> Tensor | None:
    """None for integers (their scale is missing), packed, sparse and empty shells of tensors."""
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        return None
    try:
        return tensor.float()
    except (RuntimeError, NotImplementedError):
        return None


def _states(found: Any) -> dict[str, dict[str, Tensor]]:
    """What is nothing but tensors by name: the whole content, or some of its entries."""
    if not isinstance(found, dict):
        return {}
    return {
        str(name): entry
        for name, entry in {"": found, **found}.items()
        if isinstance(entry, dict)
        and entry
        and all(isinstance(key, str) and torch.is_tensor(entry[key]) for key in entry)
    }


def _parse_safetensors(content: bytes, shown: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a type that PyTorch does not have
        raise JobError(
            f"{shown} is a safetensors file that is damaged ({len(content)} bytes), or of unknown "
            f"types: {cause(error)}"
        ) from error


def _parse_pt(content: bytes, shown: str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles, which are refused anyway
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if foreign is None:
            raise JobError(f"{shown} is neither a safetensors nor a PyTorch file") from error
        raise JobError(
            f"{shown} holds a pickled {foreign[1]}, not only weights; pickles can run code, so "
            "only tensors are read: save model.state_dict(), or safetensors"
        ) from error
    except Exception as error:  # each kind of damage has its own
        if "TorchScript" in str(error):
            raise JobError(
                f"{shown} is a TorchScript program; expected weights: save its state_dict()"
            ) from error
        raise JobError(
            f"{shown} is neither a safetensors nor a PyTorch file, or damaged "
            f"({len(content)} bytes): {cause(error)}"
        ) from error
