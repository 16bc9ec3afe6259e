"""What was computed behind the scores and need not be again: columns of criteria, losses of groups.

Each says what it was made of, in the metadata of its table. Of an earlier run's tables only what
was made of the same is taken over.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from shapray.config import Cluster
from shapray.errors import StorageError
from shapray.inputs.digest import digest
from shapray.pruning.chooser import Losses
from shapray.pruning.curve import losses_table
from shapray.pruning.ranking import Ranking
from shapray.storage import names
from shapray.storage.criteria import CRITERIA
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import LOSSES

_MADE_OF = b"shapray.made_of"
_UNITS = ["group", "unit"]


def made_of(fingerprint: str, cluster: Cluster, n_images: int) -> str:
    """What criteria and losses are made of, but for what they say of themselves; the memory decides
    how many images some of them see.

    Args:
        fingerprint: of the scores.
        n_images: calibration images that were taken.
    """
    return digest([fingerprint, cluster.memory_per_worker, n_images])


def table_if_sound(store: RunDirectory, path: str) -> pa.Table | None:
    """None for one that is not there, or damaged: then it is made anew."""
    try:
        return store.read_table(path)
    except StorageError:
        return None


def has_criterion(scores: pa.Table, name: str, made_of: str) -> bool:
    """Whether a table of scores has a criterion's column, made of the same."""
    if name not in scores.column_names:
        return False
    return (scores.field(name).metadata or {}).get(_MADE_OF) == made_of.encode()


def with_criterion(scores: pa.Table, name: str, values: np.ndarray, made_of: str) -> pa.Table:
    """A table of scores with a criterion's column, (n_rows,)."""
    field = CRITERIA[name]
    field = field.with_metadata({**(field.metadata or {}), _MADE_OF: made_of.encode()})
    return scores.append_column(field, pa.array(values, pa.float64()))


def with_kept_criteria(scores: pa.Table, earlier: pa.Table | None, made_of: str) -> pa.Table:
    """A new table of scores with the criteria's columns of an earlier one, if that has its units.

    Args:
        made_of: what they must have been made of.
    """
    if earlier is None or not set(_UNITS) <= set(earlier.column_names):
        return scores
    groups = set(scores["group"].to_pylist())
    earlier = earlier.filter(pa.array([name in groups for name in earlier["group"].to_pylist()]))
    if not earlier.select(_UNITS).equals(scores.select(_UNITS)):
        return scores
    for name in (name for name in earlier.column_names if name in CRITERIA):
        if has_criterion(earlier, name, made_of):
            scores = with_criterion(scores, name, earlier[name].to_numpy(), made_of)
    return scores


class KeptLosses:
    """Losses of groups that any cut of a run has measured, by what they were made of.

    Args:
        store: the run's directory.
        made_of: everything but the order of the units.
    """

    def __init__(self, store: RunDirectory, made_of: str) -> None:
        self.store, self.made_of = store, made_of
        self._known: dict[str, list[float]] = {}
        for cut in (None, *store.folders(names.CUTS)):
            table = table_if_sound(store, f"{names.folder_of(cut)}/{names.LOSSES}")
            if table is not None and table.schema.equals(LOSSES):
                self._add(table)

    def _add(self, table: pa.Table) -> None:
        made = json.loads((table.schema.metadata or {}).get(_MADE_OF, b"{}"))
        curves: dict[tuple[str, str], list[float]] = {}
        for row in table.to_pylist():
            ranking = Ranking(row["criterion"], row["seed"], {}).name
            curves.setdefault((ranking, row["group"]), []).append(row["loss"])
        for (ranking, group), losses in curves.items():
            if group in made.get(ranking, {}):
                self._known[made[ranking][group]] = losses

    def key(self, group: str, order: Sequence[int]) -> str:
        return digest([self.made_of, group, order])

    def of(self, ranked: Sequence[Ranking]) -> dict[str, dict[str, Sequence[float]]]:
        """Ranking -> group -> a loss per point, for the groups whose losses are known."""
        return {
            ranking.name: {
                group: self._known[key]
                for group, order in ranking.orders.items()
                if (key := self.key(group, order)) in self._known
            }
            for ranking in ranked
        }

    def publish(
        self,
        folder: str,
        ranked: Sequence[Ranking],
        losses: Losses,
        points: Mapping[str, Sequence[int]],
    ) -> None:
        """Write the losses that there are, with what they were made of, into a cut's folder.

        Args:
            points: see `losses_table`.
        """
        made: Mapping[str, Mapping[str, str]] = {
            ranking.name: {
                group: self.key(group, order)
                for group, order in ranking.orders.items()
                if group in losses[ranking.name]
            }
            for ranking in ranked
        }
        schema = LOSSES.with_metadata({_MADE_OF: json.dumps(made)})
        table = losses_table(ranked, losses, points)
        self.store.publish_table(f"{folder}/{names.LOSSES}", [table], schema)
