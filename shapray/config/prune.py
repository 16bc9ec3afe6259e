"""The section `prune`: how small, what goes, and what is done to make the rest work."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from shapray.bounds import (
    Count,
    Positive,
    Seed,
    Share,
    SomeShare,
    Text,
    empty_if_none,
    such,
    whole,
)
from shapray.config.section import Section

TARGETS = ("macs", "parameters", "latency", "ratio", "max_loss_increase", "min_accuracy")
CRITERIA = (
    "random",
    "l1_norm",
    "l2_norm",
    "batchnorm_scale",
    "apoz",
    "taylor",
    "taylor_signed",
    "obd",
    "jacobian",
    "leave_one_out",
    "obs",
    "shapley_sampled",
)
IN_ROUNDS = ("macs", "parameters", "ratio")  # targets that a network can come to step by step
FORMATS = ("pt2", "onnx")  # beside safetensors
AUTO = "auto"  # the order that has been found best for what is done after the cut
REPAIRS = ("batchnorm", "least_squares", "distill")
SHAPLEY = re.compile(
    r"(?P<score>mean|mean_abs)( *\+ *(?P<times>\d+(\.\d+)?) *\* *(?P<spread>std|standard_error))?"
)
"""A score by Shapley values, from columns of ``scores.parquet``."""


def _is_ranking(name: str) -> bool:
    return name in CRITERIA or SHAPLEY.fullmatch(name) is not None


_RANKINGS = "mean, mean_abs, either with + NUMBER*std or + NUMBER*standard_error, or one of " + (
    ", ".join(CRITERIA)
)
Ranking = Annotated[str, such(f"expected {_RANKINGS}", _is_ranking)]
Own = Annotated[
    str,
    such(f"expected {AUTO}, {_RANKINGS}", lambda name: name == AUTO or _is_ranking(name)),
]
Format = Annotated[str, such(f"expected one of {', '.join(FORMATS)}", FORMATS.__contains__)]
Repair = Annotated[str, such(f"expected one of {', '.join(REPAIRS)}", REPAIRS.__contains__)]


def _listed(value: Any) -> Any:
    """One entry is a list of one."""
    return [value] if isinstance(value, str) else value


class Distill(Section):
    """Training on the calibration images, with the whole network as the teacher."""

    steps: Annotated[int, whole(1, 10**6)] = 1000
    learning_rate: Positive = 5e-4
    labels: bool = False


class Prune(Section):
    """What goes, and what is done for the rest. One of `TARGETS` says how small the network gets;
    the sizes of `curve` are measured besides."""

    macs: SomeShare | None = None
    parameters: SomeShare | None = None
    latency: SomeShare | None = None
    ratio: Share | None = None
    max_loss_increase: Positive | None = None
    min_accuracy: SomeShare | None = None
    rounds: Count = 1
    allocation: Literal["measured", "global", "uniform"] = "measured"
    rank_by: Annotated[tuple[Own, ...], BeforeValidator(_listed)] = (AUTO,)
    per_multiply_add: bool = False
    criteria: Annotated[tuple[Ranking, ...], BeforeValidator(_listed)] = ("random",)
    random_seeds: tuple[Seed, ...] = (0, 1, 2)
    repair: Annotated[tuple[Repair, ...], BeforeValidator(_listed)] = ("least_squares",)
    distill: Distill = Distill()
    export: Annotated[tuple[Format, ...], BeforeValidator(_listed)] = ("pt2",)
    min_units: Count = 1
    round_to: Count = 1
    protect: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = ()
    curve: tuple[SomeShare, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _has_one_target(cls, found: Any) -> Any:
        found = empty_if_none(found)  # this runs before what all sections have in common
        if not isinstance(found, dict):
            return found
        if "scope" in found:  # the name until 0.2
            found = dict(found)
            scope = found.pop("scope")
            if scope not in ("global", "group") or "allocation" in found:
                raise ValueError("scope is called allocation now: measured, global or uniform")
            found["allocation"] = "uniform" if scope == "group" else "global"
        given = [key for key in TARGETS if found.get(key) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(f'{key}: {found[key]}' for key in given)}; one of them says how "
                "small the network gets"
            )
        return found if given else found | {"ratio": 0.3}

    @model_validator(mode="after")
    def _names_each_once(self) -> "Prune":
        for key in ("random_seeds", "curve", "criteria", "repair", "rank_by", "export"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key} has an entry twice: {list(given)}")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Prune":
        alone = [name for name in ("random", AUTO) if name in self.rank_by and self.rank_by[1:]]
        if alone or not self.rank_by:
            raise ValueError(
                f"rank_by is {list(self.rank_by)}; name one criterion or several"
                + "".join(f", and {name} by itself" for name in alone)
            )
        if "random" in self.rank_by and not self.random_seeds:
            raise ValueError("rank_by is random, and random_seeds is empty; its first is the seed")
        order = sorted(self.repair, key=REPAIRS.index)
        if list(self.repair) != order:
            raise ValueError(f"repair is {list(self.repair)}; they are done in the order {order}")
        key, value = self.target
        if self.rounds > 1 and key not in IN_ROUNDS:
            raise ValueError(
                f"rounds is {self.rounds}, with {key}: {value}; several rounds need a size to come "
                f"to, {', '.join(IN_ROUNDS[:-1])} or {IN_ROUNDS[-1]}"
            )
        return self

    @property
    def target(self) -> tuple[str, float]:
        """The key that says how small the network gets, and its value."""
        return next((key, getattr(self, key)) for key in TARGETS if getattr(self, key) is not None)

    @property
    def compared(self) -> tuple[str, ...]:
        """The other criteria, without the one that the network is cut by."""
        return tuple(name for name in self.criteria if (name,) != self.rank_by)
