"""The compressed network on disk: its weights written, and the network read back."""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import BaseModel, Field, ValidationError, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from shapray.config import Model
from shapray.credentials import is_hidden, without_credentials
from shapray.errors import JobError
from shapray.inputs.model import build_model
from shapray.inputs.outputs import own
from shapray.inputs.weights import misfits, put_weights
from shapray.network.cuttable import as_program
from shapray.network.find import find_groups
from shapray.network.surgery import prune_model
from shapray.network.unreached import apply_settings
from shapray.pruning.cuts import PLAN_FORMAT
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory
from shapray.text import one_line, some

_Count = Annotated[int, Field(strict=True, gt=0)]
_Unit = Annotated[int, Field(strict=True, ge=0)]


class _Job(BaseModel):
    model: Model


class _Run(BaseModel):
    """What is needed of ``run.json``."""

    job: _Job
    example_shape: tuple[Literal[1], _Count, _Count, _Count]
    stages: dict[str, dict[str, Any]] = {}


class _Group(BaseModel):
    n_units: _Count
    removed: list[_Unit]

    @model_validator(mode="after")
    def _removes_its_own_units(self) -> "_Group":
        if self.removed and max(self.removed) >= self.n_units:
            raise ValueError(
                f"removes unit {max(self.removed)}; its units are 0 to {self.n_units - 1}"
            )
        if len(set(self.removed)) < len(self.removed):
            raise ValueError("removes a unit twice")
        if len(self.removed) == self.n_units:
            raise ValueError(f"removes all {self.n_units} units; one must stay")
        return self


class _Plan(BaseModel):
    format: _Count
    groups: dict[str, _Group]
    program: bool = False
    dropped: dict[str, Literal[False] | None] = {}  # plans of version 0.2 have none

    @model_validator(mode="after")
    def _is_known(self) -> "_Plan":
        if self.format != PLAN_FORMAT:
            raise ValueError(f"its format is {self.format}; this version reads {PLAN_FORMAT}")
        return self


Content = TypeVar("Content", bound=BaseModel)


def weights_bytes(model: nn.Module) -> bytes:
    """The network's state dict as the content of a safetensors file."""
    # The format knows neither other memory layouts nor two names for one tensor.
    state = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    return safetensors.torch.save(state)


def load_pruned(
    run_dir: str | os.PathLike[str],
    kwargs: Mapping[str, Any] | None = None,
    *,
    name: str | None = None,
) -> nn.Module:
    """The compressed network of a finished run, as its factory made it: eval mode, CPU.

    Builds the job's factory, removes the units of ``prune/plan.json`` and loads
    ``prune/model.safetensors``; the original weights are not read.

    Args:
        run_dir: the job's `output`, any fsspec URL.
        name: of another cut, by ``python -m shapray.prune``: its files are in ``prune/NAME/``.
        kwargs: keyword arguments of the factory, over those in ``run.json``, which holds no
            credentials.
    Raises:
        JobError: a file of the run is missing or damaged, the factory fails or now makes another
            network, or it needs a keyword argument that ``run.json`` does not hold.
        StorageError: a file is there and cannot be read.
    """
    store = RunDirectory(os.fspath(run_dir))
    run = _parsed(
        store, names.RUN, _read(store, names.RUN, "is this the output folder of a run?"), _Run
    )
    hint, folder = _why_missing(run), names.folder_of(name)
    if name is not None:
        others = some(store.folders(names.CUTS)) or "none"
        hint = f"the cuts of this run are: {others}"
    of_plan, of_weights = (
        f"{folder}/{file}" for file in (names.PLAN, names.of_network("safetensors"))
    )
    plan = _parsed(store, of_plan, _read(store, of_plan, hint), _Plan)
    state = _tensors(store, of_weights, _read(store, of_weights, hint))
    section = _with_arguments(store, run.job.model, kwargs or {})
    example = _example(store, run)
    try:
        model = build_model(section, example=example)
    except JobError as error:
        raise JobError(
            without_credentials(f"{store.shown}/{names.RUN}: its network cannot be built: {error}")
        ) from error
    pruned = _cut(f"{store.shown}/{of_plan}", model, section.factory, plan, example)
    _fill(f"{store.shown}/{of_weights}", pruned, state, section.factory)
    return own(pruned)


def read_cut(
    store: RunDirectory, factory: str, whole: nn.Module, example: Tensor
) -> tuple[nn.Module, dict[str, list[int]]]:
    """A cut network that lies beside its ``plan.json``, and the units that it lacks.

    Args:
        store: the folder of both.
        factory: of `whole`, for messages.
        whole: the network before the cut, on the CPU; left as it is.
        example: one image, (1, channels, height, width).
    Returns:
        the network, in the mode of `whole`; group -> units of the whole network, of all groups
        that were scored then.
    Raises:
        JobError: a file is missing or damaged, or of another network.
        StorageError: a file is there and cannot be read.
    """
    of_plan, of_weights = names.PLAN, names.of_network("safetensors")
    hint = "the network was not kept"
    plan = _parsed(store, of_plan, _read(store, of_plan, hint), _Plan)
    state = _tensors(store, of_weights, _read(store, of_weights, hint))
    pruned = _cut(f"{store.shown}/{of_plan}", whole, factory, plan, example)
    _fill(f"{store.shown}/{of_weights}", pruned, state, factory)
    return pruned, {name: sorted(group.removed) for name, group in plan.groups.items()}


def _read(store: RunDirectory, path: str, hint: str) -> bytes:
    data = store.read(path)
    if data is None:
        raise JobError(f"{store.shown}/{path}: no such file; {hint}")
    return data


def _why_missing(run: _Run) -> str:
    """What the run says of the stages that choose the units and write the network."""
    if "prune" not in run.stages:
        return "the run had no stage that prunes the network"
    for stage in ("prune", "evaluate"):
        state = run.stages.get(stage, {}).get("state", "waiting")
        if state != "done":
            return (
                f"the run's stage {stage} is '{state}', not 'done'; the job's command goes on with "
                "it"
            )
    return "it was deleted; the job's command writes it again"


def _parsed(store: RunDirectory, path: str, data: bytes, kind: type[Content]) -> Content:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        findings = [
            ".".join(map(str, found["loc"])) + ": " + found["msg"].removeprefix("Value error, ")
            for found in error.errors(include_url=False)
        ]
        raise JobError(
            f"{store.shown}/{path} is damaged, or of another version of this program: "
            + some([finding.removeprefix(": ") for finding in findings])
        ) from error


def _with_arguments(store: RunDirectory, model: Model, given: Mapping[str, Any]) -> Model:
    """The recorded factory with all its keyword arguments, and without the original weights."""
    arguments = model.kwargs | dict(given)
    lost = [name for name in model.kwargs if name not in given and is_hidden(model.kwargs[name])]
    if lost:
        example = ", ".join(f"'{name}': ..." for name in lost)
        raise JobError(
            f"{store.shown}/{names.RUN} does not hold all that {model.factory} was called with: "
            f"{', '.join(f'model.kwargs.{name}' for name in lost)} could be a credential, or is "
            "nothing that JSON keeps, and was not written down; give it again: "
            f"load_pruned('{store.shown}', kwargs={{{example}}})"
        )
    return model.model_copy(update={"kwargs": arguments, "weights": None})


def _tensors(store: RunDirectory, path: str, data: bytes) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise JobError(
            f"{store.shown}/{path} is not a safetensors file, or damaged ({len(data)} bytes): "
            f"{error}"
        ) from error


def _example(store: RunDirectory, run: _Run) -> Tensor:
    try:
        return torch.zeros(run.example_shape)
    except RuntimeError as error:  # more than the memory holds
        raise JobError(
            f"{store.shown}/{names.RUN}: no image of the shape {run.example_shape}, its "
            "example_shape, can be made"
        ) from error


def _cut(where: str, model: nn.Module, factory: str, plan: _Plan, example: Tensor) -> nn.Module:
    try:
        if plan.program:
            model = as_program(model, example)
        groups = find_groups(model, example)
        n_units = {group.name: group.n_units for group in groups}
        for name, group in plan.groups.items():
            if n_units.get(name, group.n_units) != group.n_units:
                raise ValueError(
                    f"group '{name}' has {n_units[name]} units; the plan was for {group.n_units}"
                )
        removed = {name: group.removed for name, group in plan.groups.items()}
        pruned = prune_model(model, groups, removed)
        apply_settings(pruned, plan.dropped)
    except Exception as error:  # the network is run, and may raise anything
        raise JobError(
            f"{where}: its groups do not fit the network that "
            f"{factory} makes, on an image of shape {tuple(example.shape)}: "
            f"{one_line(error)}"
        ) from error
    return pruned


def _fill(where: str, network: nn.Module, state: Mapping[str, Tensor], factory: str) -> None:
    wanted = network.state_dict()
    findings = misfits(state, wanted)
    if findings:
        raise JobError(
            f"{where}: its {len(state)} tensors do not fit the network that "
            f"{factory} makes, cut as planned ({len(wanted)} tensors): {'; '.join(findings)}"
        )
    put_weights(network, state)
