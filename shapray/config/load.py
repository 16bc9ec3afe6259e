"""A job file read, with the command line's values in it, and what is wrong with it in words."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from shapray.config.prune import TARGETS
from shapray.config.sections import Job
from shapray.errors import JobError


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


def override(tree: dict[str, Any], assignment: str) -> None:
    """Put the value of ``section.key=value`` into what a job file holds."""
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
    if sections == ["prune"] and last in TARGETS:  # one says how small: this one, then
        for key in TARGETS:
            node.pop(key, None)
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
        override(tree, assignment)
    try:
        return Job.model_validate(tree)
    except ValidationError as error:
        raise JobError(f"job file {file}:\n" + explain(error, Job)) from error


_GONE = {
    "score.target_standard_error": "it is score.target_error now: of the total error, relative to "
    "the spread of a group's scores (0.25 is usual), and score.permutations: auto meets it"
}
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
            known = ", ".join(_known_keys(section, finding["loc"][:-1]))
            message = _GONE.get(key, f"unknown key; known here: {known}")
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
