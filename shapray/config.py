"""The job file: frozen models that refuse unknown keys."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from shapray.errors import JobError
from shapray.shapley import values
from shapray.shapley.estimators import MAX_EXACT_PLAYERS

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _bytes(value: Any) -> Any:
    """'2GiB' or a number -> bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([\d.]+)\s*([kmg]i?)?b?\s*", value.lower())
        if not match:
            raise ValueError(f"'{value}' is not a size; write for example 2GiB or 500MB")
        return int(float(match[1]) * _UNITS[match[2] or ""])
    return value


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=2**30)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Model(_Section):
    """The network: a factory and its weights."""

    factory: str
    kwargs: dict[str, Any] = {}
    weights: str | None = None

    @model_validator(mode="after")
    def _names_a_callable(self) -> "Model":
        if self.factory.count(":") != 1:
            raise ValueError(f"factory '{self.factory}' is not of the form module:callable")
        return self


class Images(_Section):
    """One set of images. `path` is any fsspec URL; `factory` names a torchvision data set
    (``torchvision``) or a ``module:callable`` (``callable``), called with `kwargs`."""

    source: Literal["parquet", "imagefolder", "torchvision", "callable"]
    path: str | None = None
    factory: str | None = None
    kwargs: dict[str, Any] = {}
    image_column: str = "image"
    label_column: str | None = "label"
    id_column: str | None = "image_id"
    where: dict[str, str | int | bool] = {}
    limit: PositiveInt | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> "Images":
        needed = {
            "parquet": "path",
            "imagefolder": "path",
            "torchvision": "factory",
            "callable": "factory",
        }[self.source]
        if getattr(self, needed) is None:
            raise ValueError(f"source '{self.source}' needs the key '{needed}'")
        if self.where and self.source != "parquet":
            raise ValueError(f"'where' selects Parquet rows; source is '{self.source}'")
        return self


class Transform(_Section):
    """Image bytes -> float tensor: decode as `mode`, `resize` (shorter side, or [height, width]),
    centre `crop`, scale to [0, 1], subtract `mean`, divide by `std`."""

    mode: Literal["RGB", "L"] = "RGB"
    resize: PositiveInt | tuple[PositiveInt, PositiveInt] | None = None
    crop: PositiveInt | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _mean_and_std_fit(self) -> "Transform":
        n_channels = 3 if self.mode == "RGB" else 1
        for key in ("mean", "std"):
            given = getattr(self, key)
            if given is not None and len(given) != n_channels:
                raise ValueError(
                    f"{key} has {len(given)} numbers; mode {self.mode} has {n_channels} channels"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be positive, found {list(self.std)}")
        return self


class Data(_Section):
    """The two sets of images, never the same, and how both become tensors."""

    calibration: Images
    evaluation: Images
    transform: Transform = Transform()


def _names_a_value_function(name: str) -> str:
    if name not in values.NAMES:
        raise ValueError(f"no such value function; there are {', '.join(values.NAMES)}")
    return name


class Score(_Section):
    """What is computed for every unit.

    An image that is sampled may take as many coalitions as `permutations` of its active units
    meet; with `target_standard_error` (of a score, relative to the spread of the group's scores)
    that is the most, and fewer are drawn where fewer reach the target."""

    value: Annotated[str, AfterValidator(_names_a_value_function)] = "neg_cross_entropy"
    estimator: Literal["hybrid", "exact", "permutation"] = "hybrid"
    permutations: int = Field(default=8, ge=2)
    target_standard_error: Annotated[float, Field(gt=0)] | None = None
    exact_max_players: int = Field(default=12, ge=0, le=MAX_EXACT_PLAYERS)
    groups: tuple[str, ...] = ("*",)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)

    @model_validator(mode="after")
    def _permutations_are_pairs(self) -> "Score":
        if self.permutations % 2:
            raise ValueError(
                f"permutations is {self.permutations}; coalitions are drawn in pairs, "
                "so the number must be even"
            )
        if self.target_standard_error is not None and self.permutations < 4:
            raise ValueError(
                f"permutations is {self.permutations}; target_standard_error needs at least 4, "
                "the standard error of a single pair is unknown"
            )
        return self


class Cluster(_Section):
    """Who computes: one worker per Ray actor. `grows`: the Ray cluster adds nodes when workers
    wait for one."""

    workers: PositiveInt | Literal["auto"] = "auto"
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    cpus_per_worker: PositiveInt = 1
    images_per_task: PositiveInt = 16
    memory_per_worker: Bytes = 2 * 2**30
    device: Literal["auto", "cpu", "cuda"] = "auto"
    grows: bool | Literal["auto"] = "auto"


class Prune(_Section):
    """Which units go, by score."""

    criterion: Literal["shapley"] = "shapley"
    rank_by: Literal["mean", "mean_abs"] = "mean"
    ratio: float = Field(default=0.3, ge=0, lt=1)
    scope: Literal["global", "group"] = "global"
    min_units: PositiveInt = 1
    round_to: PositiveInt = 1
    random_seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2)
    curve: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()

    @model_validator(mode="after")
    def _names_each_once(self) -> "Prune":
        for key in ("random_seeds", "curve"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key} has an entry twice: {list(given)}")
        return self


class Job(_Section):
    """A whole job file."""

    name: str
    model: Model
    data: Data
    score: Score = Score()
    cluster: Cluster = Cluster()
    prune: Prune = Prune()
    output: str


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise JobError(f"'{assignment}' is not an override; write section.key=value")
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise JobError(f"override '{assignment}': '{section}' is a value, not a section")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise JobError(f"override '{assignment}': '{text}' is not YAML ({error})") from error


def load_job(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply ``section.key=value`` overrides.

    Args:
        path: local YAML file.
        overrides: assignments; each value is parsed as YAML.
    Raises:
        JobError: file missing, not YAML, unknown key, wrong type; names the key and what was found.
    """
    file = Path(path)
    if not file.is_file():
        raise JobError(f"job file {file}: no such file (current folder: {Path.cwd()})")
    try:
        tree = yaml.load(file.read_text(), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise JobError(f"job file {file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise JobError(f"job file {file}: expected sections, found {type(tree).__name__}")
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        raise JobError(f"job file {file}:\n" + explain(error, Job)) from error


def explain(error: ValidationError, section: type[BaseModel]) -> str:
    """Pydantic's findings, a line each: the key, what was found, what would be right.

    Args:
        section: the model that was validated.
    """
    lines = []
    for finding in error.errors():
        key = ".".join(str(part) for part in finding["loc"])
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden":
            message = "unknown key; known here: " + ", ".join(
                _known_keys(section, finding["loc"][:-1])
            )
        elif finding["type"] == "missing":
            message = "this key is missing"
        elif "input" in finding and not isinstance(finding["input"], dict):
            message += f" (found {finding['input']!r})"
        lines.append(f"  {key}: {message}" if key else f"  {message}")
    return "\n".join(lines)


def _known_keys(section: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    model: Any = section
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
