"""The compressed network on disk: its weights written, and the network read back."""

import json
from typing import Any

import fsspec
import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import nn

from shapray.config import Model
from shapray.errors import JobError
from shapray.inputs.model import materialise
from shapray.inputs.user_code import call
from shapray.network.group import n_root_units
from shapray.network.surgery import prune_model


def weights_bytes(model: nn.Module) -> bytes:
    """The network's state dict as the content of a safetensors file."""
    # The format knows neither other memory layouts nor two names for one tensor.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(state)


def load_pruned(run_dir: str) -> nn.Module:
    """The compressed network of a finished run: eval mode, CPU.

    Builds the job's factory, removes the units of ``prune/plan.json`` and loads
    ``prune/model.safetensors``; the original weights are not read.

    Args:
        run_dir: the job's `output`, any fsspec URL.
    Raises:
        JobError: a file of the run is missing or damaged, or the factory now makes another network.
    """
    folder = run_dir.rstrip("/")
    run = _read_json(f"{folder}/run.json")
    plan = _read_json(f"{folder}/prune/plan.json")
    weights = _read(f"{folder}/prune/model.safetensors")
    try:
        made_by = Model.model_validate(run["job"]["model"])
        example = torch.zeros(run["example_shape"])
        groups = {
            name: (group["n_units"], group["removed"]) for name, group in plan["groups"].items()
        }
    except (KeyError, TypeError, ValidationError) as error:
        raise JobError(
            f"run directory {folder}: run.json or plan.json is damaged: {error}"
        ) from error

    model = call(made_by.factory, made_by.kwargs, "model.factory").to(dtype=torch.float32).eval()
    materialise(model, example, "model.factory")
    try:
        for name, (n_units, _) in groups.items():
            found = n_root_units(model.get_submodule(name))
            if found != n_units:
                raise ValueError(f"group '{name}' has {found} units; the plan was for {n_units}")
        pruned = prune_model(model, example, {name: units for name, (_, units) in groups.items()})
        pruned.load_state_dict(safetensors.torch.load(weights))
    except (ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise JobError(
            f"run directory {folder}: its plan and weights do not fit the network that "
            f"{made_by.factory} makes: {error}"
        ) from error
    return pruned


def _read(url: str) -> bytes:
    fs, path = fsspec.url_to_fs(url)
    try:
        return fs.cat_file(path)
    except FileNotFoundError as error:
        raise JobError(
            f"{url}: no such file; is this the output folder of a job whose network was pruned?"
        ) from error


def _read_json(url: str) -> Any:
    try:
        return json.loads(_read(url))
    except ValueError as error:
        if isinstance(error, JobError):
            raise
        raise JobError(f"{url} is not JSON: {error}") from error
