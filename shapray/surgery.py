"""A plan (units removed, per group) to a smaller network; its weights written and read back."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
import safetensors.torch
import torch
import torch_pruning as tp
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from shapray.config import Job, JobError
from shapray.model import import_callable


def dependency_graph(model: nn.Module, example: Tensor) -> tuple[tp.DependencyGraph, Any]:
    """torch-pruning's dependency graph of a deep copy of `model`, and the copy's output.

    The graph is read off the autograd graph of one forward pass, so the copy (``graph.model``) is
    in eval mode and all its parameters require grad; `model` itself is left alone.

    Args:
        example: one image, (1, C, H, W).
    """
    outputs = []

    def keep(output: Any) -> Any:
        outputs.append(output)
        return output

    with torch.inference_mode(False), torch.enable_grad():
        graph = tp.DependencyGraph()
        # In a list, or torch-pruning would first try the lone image without its batch dimension.
        inputs = [example.detach().clone()]
        tracked = traceable_copy(model)
        graph.build_dependency(tracked, inputs, output_transform=keep, verbose=False)
    return graph, outputs[0]


def traceable_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose parameters all require grad."""
    with torch.inference_mode(False):  # what is copied in inference mode can never require grad
        tracked = copy.deepcopy(model).eval()
        for parameter in tracked.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
    return tracked


def n_root_units(root: nn.Module) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    if isinstance(root, nn.Conv2d):
        return root.out_channels
    if isinstance(root, nn.Linear):
        return root.out_features
    raise ValueError(f"a {type(root).__name__} is no root of a group")


def prune_model(
    model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A deep copy of `model` without some units; `model` itself is left alone.

    Args:
        example: one image, (1, C, H, W), with which the network's graph is traced.
        removed: root module name of a group -> its units to remove, as indices of the original
            network.
    Raises:
        ValueError: a root that is no Conv2d or Linear, indices out of range or twice, all units of
            a group, two groups that share channels, units that cannot go without others.
    """
    removed = {name: sorted(units) for name, units in removed.items() if len(units)}
    modules = dict(model.named_modules())
    for name, units in removed.items():
        root = modules.get(name)
        if not isinstance(root, nn.Conv2d | nn.Linear):
            raise ValueError(f"group '{name}': the network has no Conv2d or Linear of that name")
        n_units = n_root_units(root)
        if len(set(units)) < len(units) or units[0] < 0 or units[-1] >= n_units:
            raise ValueError(f"group '{name}': units to remove must be distinct, in [0, {n_units})")
        if len(units) == n_units:
            raise ValueError(f"group '{name}': all {n_units} units would go; one must stay")

    graph, _ = dependency_graph(model, example)
    pruned = graph.model
    for name, units in removed.items():
        root = pruned.get_submodule(name)
        if n_root_units(root) != n_root_units(modules[name]):
            raise ValueError(f"group '{name}' shares channels with another group of the plan")
        prune_root = graph.get_pruner_of_module(root).prune_out_channels
        group = graph.get_pruning_group(root, prune_root, units)
        coupled = set(group[0].idxs) - set(units)
        if coupled:
            raise ValueError(
                f"group '{name}': removing units {units[:5]} would remove {len(coupled)} others too"
            )
        group.prune()

    # Tracing put the copy in eval mode and made everything require grad; surgery made new tensors.
    for name, module in pruned.named_modules():
        module.training = modules[name].training
    for name, parameter in model.named_parameters():
        pruned.get_parameter(name).requires_grad_(parameter.requires_grad)
    return pruned


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
        job = Job.model_validate(run["job"])
        example = torch.zeros(run["example_shape"])
        groups = {
            name: (group["n_units"], group["removed"]) for name, group in plan["groups"].items()
        }
    except (KeyError, TypeError, ValidationError) as error:
        raise JobError(
            f"run directory {folder}: run.json or plan.json is damaged: {error}"
        ) from error

    model = import_callable(job.model.factory, "model.factory")(**job.model.kwargs)
    model = model.to(dtype=torch.float32).eval()
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
            f"{job.model.factory} makes: {error}"
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
