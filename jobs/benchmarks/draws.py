"""A trained network and a draw of calibration images: what each unit is worth by any criterion.

Shapley scores take minutes to an hour a draw, so that they are kept in `CACHE`, group by group;
the other criteria's stand beside them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor, nn

import shapray
from jobs.benchmarks.networks import CIFAR_TRANSFORM, cifar_images, cifar_model
from shapray.config import Prune
from shapray.config.prune import SHAPLEY
from shapray.engine.trace import fold
from shapray.inputs.images import open_images
from shapray.inputs.model import build_model
from shapray.network.find import find_groups
from shapray.network.group import Group
from shapray.pruning.criteria import criterion
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import shuffled
from shapray.pruning.sizes import Sizes

CACHE = Path("runs/benchmark-scores")  # git ignores runs/
IMAGES = 256
PERMUTATIONS = {"resnet20": 4, "resnet56": 2}
ENUMERATED = {"resnet20": 12, "resnet56": 5}  # active units; more would take hours of the deep one


@dataclass(frozen=True)
class Trained:
    """A network and all that no images are needed for.

    Attributes:
        model: in eval mode.
        folded: the same as a graph, see `engine.trace.fold`.
        groups: those that can be cut.
        sizes: of the network with so many units gone.
    """

    name: str
    model: nn.Module
    folded: nn.Module
    groups: list[Group]
    sizes: Sizes

    @staticmethod
    def of(name: str, model: nn.Module, example: Tensor) -> "Trained":
        """example: (1, channels, height, width)."""
        found = find_groups(model, example)
        groups = [group for group in found if group.reason is None and group.flat]
        return Trained(name, model, fold(model, example), groups, Sizes(model, found, example))


@dataclass(frozen=True)
class Draw:
    """Calibration images.

    Attributes:
        number: the seed that they were drawn by.
        images: (n, channels, height, width) float32, classes mixed.
        labels: (n,) int64.
        ids: they name the images' random streams.
        scores: where the network's scores on them are kept.
    """

    number: int
    images: Tensor
    labels: Tensor
    ids: Sequence[str]
    scores: Path


def load_trained(name: str) -> Trained:
    images, _ = evaluation(1)
    return Trained.of(name, build_model(cifar_model(name)), images)


def load_draw(name: str, number: int, n_images: int = IMAGES) -> Draw:
    """As many calibration images of every class, by seed."""
    section = cifar_images("calibration", n_images, number)
    found = open_images(section, CIFAR_TRANSFORM, f"benchmark {name}, draw {number}")
    order = shuffled(len(found))
    assert found.labels is not None
    return Draw(
        number,
        found.load(0, len(found))[order],
        found.labels[order],
        [found.ids[place] for place in order.tolist()],
        CACHE / f"{name}-{number}-{n_images}-{PERMUTATIONS[name]}-{ENUMERATED[name]}.parquet",
    )


def evaluation(n_images: int | None = None) -> tuple[Tensor, Tensor]:
    """The images that networks are measured on, and their labels; None: all 2,000."""
    found = open_images(cifar_images("evaluation", n_images), CIFAR_TRANSFORM, "benchmark")
    assert found.labels is not None
    return found.load(0, len(found)), found.labels


def shapley_scores(trained: Trained, draw: Draw) -> pa.Table:
    """A row per unit, in the order of the groups; groups that are not kept yet are scored."""
    table = pq.read_table(draw.scores) if draw.scores.exists() else None
    for group in trained.groups:
        if table is not None and group.name in table["group"].to_pylist():
            continue
        found = shapray.score(
            trained.model,
            draw.images,
            draw.labels,
            groups=[group.name],
            ids=draw.ids,
            progress=False,
            permutations=PERMUTATIONS[trained.name],
            exact_max_players=ENUMERATED[trained.name],
            precision="float32",
        ).scores
        table = found if table is None else pa.concat_tables([table, found])
        _keep(table, draw.scores)
        print(f"{trained.name}, draw {draw.number}: {group.name} scored", flush=True)
    assert table is not None
    return table


def ranking(trained: Trained, draw: Draw, name: str) -> Ranking:
    """The units' order.

    Args:
        name: as in a job; "random-1" for one by chance with that seed, "obs & mean_abs" for
            places by both added up.
    """
    by, _, seed = name.partition("-")
    asked = Prune(
        macs=0.5,
        rank_by=tuple(by.split(" & ")),
        criteria=(),
        random_seeds=(int(seed or 0),),
    )
    table = _other_scores(trained, draw, needed_criteria(asked))
    if any(SHAPLEY.fullmatch(part) for part in asked.rank_by):
        for column in (found := shapley_scores(trained, draw)).column_names:
            if column not in table.column_names:
                table = table.append_column(column, found[column])
    [own] = rankings(table, asked, {})
    return own


def _other_scores(trained: Trained, draw: Draw, names: Sequence[str]) -> pa.Table:
    """A row per unit, in the order of the groups, with a column per criterion at least."""
    path = draw.scores.with_stem(f"{draw.scores.stem}-criteria")
    groups = [group.name for group in trained.groups for _ in range(group.n_units)]
    table = pq.read_table(path) if path.exists() else pa.table({"group": groups})
    for name in names:
        if name not in table.column_names:
            found = criterion(name, trained.model, trained.groups, draw.images, draw.labels)
            values = np.concatenate([found[group.name] for group in trained.groups])
            table = table.append_column(name, pa.array(values, pa.float64()))
            _keep(table, path)
    return table


def _keep(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    waiting = path.with_suffix(".tmp")
    pq.write_table(table, waiting)
    waiting.replace(path)
