"""What all sections of a job file have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from shapray.bounds import empty_if_none


class Section(BaseModel):
    """Frozen; an unknown key is an error, an empty section has all defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _may_be_empty(cls, found: Any) -> Any:
        return empty_if_none(found)
