"""The sections of a job file: frozen models that refuse unknown keys."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, model_validator

from shapray.bounds import (
    Arguments,
    Count,
    Finite,
    Gpus,
    Output,
    Positive,
    Seed,
    Side,
    Sides,
    Text,
    Wanted,
    WorkerMemory,
    empty_if_none,
    is_a_folder,
    such,
    whole,
)
from shapray.config.prune import Prune
from shapray.config.section import Section
from shapray.shapley import values
from shapray.shapley.estimators import MAX_EXACT_PLAYERS


class Model(Section):
    """The network: a factory and its weights. `output`: which of several outputs holds the logits,
    by name or place; by default the one called logits, or the only one."""

    factory: Annotated[
        str, such("expected module:callable", re.compile(r"[^:\s]+[:.][^:\s]+").fullmatch)
    ]
    kwargs: Arguments = {}
    weights: Text | None = None
    output: Output | None = None


class Images(Section):
    """One set of images. `path` is any fsspec URL; `factory` names a torchvision data set
    (``torchvision``) or a ``module:callable`` (``callable``), called with `kwargs`. `limit`: how
    many are taken; of calibration images, ``auto`` takes as many as the scores need."""

    source: Literal["parquet", "imagefolder", "torchvision", "callable"]
    path: Text | None = None
    factory: Text | None = None
    kwargs: Arguments = {}
    image_column: Text = "image"
    label_column: Text | None = "label"
    id_column: Text | None = "image_id"
    where: Annotated[dict[Text, Wanted], BeforeValidator(empty_if_none)] = {}
    limit: Annotated[int | Literal["auto"], whole(1, 2**31 - 1, or_auto=True)] | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _has_what_its_source_needs(self) -> "Images":
        needed = "path" if self.source in {"parquet", "imagefolder"} else "factory"
        if getattr(self, needed) is None:
            raise ValueError(f"source '{self.source}' needs the key '{needed}'")
        if self.where and self.source != "parquet":
            raise ValueError(f"'where' selects Parquet rows; source is '{self.source}'")
        return self


class Transform(Section):
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


class Data(Section):
    """The two sets of images, never the same, and how both become tensors. `class_names`: what
    the labels 0, 1, ... are called in reports; those of class folders are the folders' names."""

    calibration: Images
    evaluation: Images
    transform: Transform = Transform()
    class_names: tuple[Text, ...] | None = None

    @model_validator(mode="after")
    def _evaluation_images_are_counted(self) -> "Data":
        if self.evaluation.limit == "auto":
            raise ValueError(
                "evaluation.limit is auto; how many images a result is measured on is for you to "
                "say: a number, or null for all"
            )
        return self


class Score(Section):
    """What is computed for every unit.

    An image that is sampled takes as many coalitions as `permutations` of its active units meet;
    ``auto`` chooses the number, group by group, by what a few images tell of both errors (see
    `shapley.pilot`). `target_error`: total error of a score, relative to the spread of the group's
    scores, that ``auto`` permutations and calibration images are to meet."""

    value: Annotated[
        str, such(f"expected one of {', '.join(values.NAMES)}", values.NAMES.__contains__)
    ] = "neg_cross_entropy"
    estimator: Literal["hybrid", "exact", "permutation"] = "hybrid"
    permutations: Annotated[int | Literal["auto"], whole(2, 2**20, or_auto=True)] = "auto"
    target_error: Positive | None = None
    exact_max_players: Annotated[int, whole(0, MAX_EXACT_PLAYERS)] = 12
    groups: tuple[Text, ...] = ("*",)
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    seed: Seed = 0

    @model_validator(mode="after")
    def _permutations_are_pairs(self) -> "Score":
        if self.permutations != "auto" and self.permutations % 2:
            raise ValueError(
                f"permutations is {self.permutations}; coalitions are drawn in pairs, "
                "so the number must be even"
            )
        return self


class Explain(Section):
    """How the scores come about. `images`: calibration images on which further coalitions are
    evaluated for it, of each group; 0: nothing is explained."""

    images: Annotated[int, whole(0, 2**16)] = 64


class Cluster(Section):
    """Who computes: one worker per Ray actor. `grows`: the Ray cluster adds nodes when workers
    wait for one."""

    workers: Annotated[int | Literal["auto"], whole(1, 2**16, or_auto=True)] = "auto"
    gpus_per_worker: Gpus = "auto"
    cpus_per_worker: Annotated[int, whole(1, 1024)] = 1
    images_per_task: Count = 16
    memory_per_worker: WorkerMemory = 2 * 2**30
    device: Literal["auto", "cpu", "cuda"] = "auto"
    grows: bool | Literal["auto"] = "auto"


class Job(Section):
    """A whole job file."""

    name: Text
    model: Model
    data: Data
    score: Score = Score()
    cluster: Cluster = Cluster()
    prune: Prune = Prune()
    explain: Explain = Explain()
    output: Annotated[
        str,
        such("names no folder for a run; right is runs/NAME or s3://BUCKET/NAME", is_a_folder),
    ]

    @model_validator(mode="after")
    def _the_target_can_be_met(self) -> "Job":
        sampled = self.score.permutations == "auto" and self.score.estimator != "exact"
        chosen = sampled or self.data.calibration.limit == "auto"
        if self.score.target_error is not None and not chosen:
            raise ValueError(
                f"score.target_error is {self.score.target_error}, and there is nothing to meet it "
                f"with: score.estimator is {self.score.estimator}, score.permutations is "
                f"{self.score.permutations} and "
                f"data.calibration.limit is {self.data.calibration.limit or 'null (all images)'}; "
                "set score.permutations or data.calibration.limit to auto"
            )
        return self
