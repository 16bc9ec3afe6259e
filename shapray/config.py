"""The job file: frozen models that refuse unknown keys."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from shapray.bounds import (
    Arguments,
    Count,
    Finite,
    Gpus,
    Positive,
    Seed,
    Share,
    Side,
    Sides,
    SomeShare,
    Text,
    Wanted,
    WorkerMemory,
    empty_if_none,
    is_a_folder,
    such,
    whole,
)
from shapray.errors import JobError
from shapray.shapley import values
from shapray.shapley.estimators import MAX_EXACT_PLAYERS


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _may_be_empty(cls, found: Any) -> Any:
        return empty_if_none(found)


class Model(_Section):
    """The network: a factory and its weights."""

    factory: Annotated[
        str, such("expected module:callable", re.compile(r"[^:\s]+:[^:\s]+").fullmatch)
    ]
    kwargs: Arguments = {}
    weights: Text | None = None


class Images(_Section):
    """One set of images. `path` is any fsspec URL; `factory` names a torchvision data set
    (``torchvision``) or a ``module:callable`` (``callable``), called with `kwargs`."""

    source: Literal["parquet", "imagefolder", "torchvision", "callable"]
    path: Text | None = None
    factory: Text | None = None
    kwargs: Arguments = {}
    image_column: Text = "image"
    label_column: Text | None = "label"
    id_column: Text | None = "image_id"
    where: Annotated[dict[Text, Wanted], BeforeValidator(empty_if_none)] = {}
    limit: Count | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> "Images":
        needed = "path" if self.source in {"parquet", "imagefolder"} else "factory"
        if getattr(self, needed) is None:
            raise ValueError(f"source '{self.source}' needs the key '{needed}'")
        if self.where and self.source != "parquet":
            raise ValueError(f"'where' selects Parquet rows; source is '{self.source}'")
        return self


class Transform(_Section):
    """Image bytes -> float tensor: decode as `mode`, `resize` (shorter side, or [height, width]),
    centre `crop`, scale to [0, 1], subtract `mean`, divide by `std`."""

    mode: Literal["RGB", "L"] = "RGB"
    resize: Sides | None = None
    crop: Side | None = None
    mean: tuple[Finite, ...] | None = None
    std: tuple[Positive, ...] | None = None

    @model_validator(mode="after")
    def _mean_and_std_fit(self) -> "Transform":
        n_channels = 3 if self.mode == "RGB" else 1
        for key in ("mean", "std"):
            given = getattr(self, key)
            if given is not None and len(given) != n_channels:
                raise ValueError(
                    f"{key} has {len(given)} numbers; mode {self.mode} has {n_channels} channels"
                )
        return self


class Data(_Section):
    """The two sets of images, never the same, and how both become tensors."""

    calibration: Images
    evaluation: Images
    transform: Transform = Transform()


class Score(_Section):
    """What is computed for every unit.

    An image that is sampled may take as many coalitions as `permutations` of its active units
    meet; with `target_standard_error` (of a score, relative to the spread of the group's scores)
    that is the most, and fewer are drawn where fewer reach the target."""

    value: Annotated[
        str, such(f"expected one of {', '.join(values.NAMES)}", values.NAMES.__contains__)
    ] = "neg_cross_entropy"
    estimator: Literal["hybrid", "exact", "permutation"] = "hybrid"
    permutations: Annotated[int, whole(2, 2**20)] = 8
    target_standard_error: Positive | None = None
    exact_max_players: Annotated[int, whole(0, MAX_EXACT_PLAYERS)] = 12
    groups: tuple[Text, ...] = ("*",)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: Seed = 0

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

    workers: Annotated[int | Literal["auto"], whole(1, 2**16, or_auto=True)] = "auto"
    gpus_per_worker: Gpus = "auto"
    cpus_per_worker: Annotated[int, whole(1, 1024)] = 1
    images_per_task: Count = 16
    memory_per_worker: WorkerMemory = 2 * 2**30
    device: Literal["auto", "cpu", "cuda"] = "auto"
    grows: bool | Literal["auto"] = "auto"


class Prune(_Section):
    """Which units go, by score."""

    rank_by: Literal["mean", "mean_abs"] = "mean"
    ratio: Share = 0.3
    scope: Literal["global", "group"] = "global"
    min_units: Count = 1
    round_to: Count = 1
    random_seeds: tuple[Seed, ...] = (0, 1, 2)
    curve: tuple[SomeShare, ...] = ()

    @model_validator(mode="after")
    def _names_each_once(self) -> "Prune":
        for key in ("random_seeds", "curve"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key} has an entry twice: {list(given)}")
        return self


class Job(_Section):
    """A whole job file."""

    name: Text
    model: Model
    data: Data
    score: Score = Score()
    cluster: Cluster = Cluster()
    prune: Prune = Prune()
    output: Annotated[
        str,
        such("names no folder for a run; right is runs/NAME or s3://BUCKET/NAME", is_a_folder),
    ]


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, of which YAML would silently take the last; reads 1e-3
    as the number that it is in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{twice}' is there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$|[-+]\.\d+$"),
    list("-+.0123456789"),
)


def _yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2024-13-45
        raise JobError(f"{what} is not YAML: {error}") from error


def _override(tree: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise JobError(f"'{assignment}' is not an override; write section.key=value")
    *sections, last = key.split(".")
    node: Any = tree
    for section in sections:
        if node.get(section) is None:
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict):
            raise JobError(f"override '{assignment}': '{section}' is a value, not a section")
    node[last] = _yaml(text, f"override '{assignment}': '{text}'")


def load_job(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Job:
    """Read a job file and apply ``section.key=value`` overrides.

    Args:
        path: local YAML file.
        overrides: assignments; each value is parsed as YAML.
    Raises:
        JobError: names the file or the key, what was found and what would be right.
    """
    file = Path(path)
    if not file.is_file():
        raise JobError(f"job file {file}: no such file (current folder: {Path.cwd()})")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"job file {file} cannot be read as UTF-8 text: {error}") from error
    tree = _yaml(text, f"job file {file}")
    if not isinstance(tree, dict):
        raise JobError(f"job file {file}: expected sections, found {type(tree).__name__}")
    for assignment in overrides:
        _override(tree, assignment)
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        raise JobError(f"job file {file}:\n" + explain(error, Job)) from error


_OWN_WORDS = dict.fromkeys(("dict_type", "model_type"), "expected a section") | {
    "tuple_type": "expected a list"
}


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
            found = repr(finding["input"])[:200]
            message = f"{_OWN_WORDS.get(finding['type'], message)} (found {found})"
        lines.append(f"  {key}: {message}" if key else f"  {message}")
    return "\n".join(lines)


def _known_keys(section: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    model: Any = section
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
