"""What a run directory holds for the report, and what it does not."""

import functools
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shapray.errors import JobError, StorageError
from shapray.report.records import CutPlan, Metrics, Record, read_record
from shapray.storage import explained, names, schemas
from shapray.storage.run_directory import RunDirectory
from shapray.text import one_line


@dataclass(frozen=True)
class Run:
    """A run's files; None where one is not there.

    Attributes:
        shown: the run directory, for the reader.
        removed: the units that the job's own cut removes, of every group.
        others: metrics of further cuts, by name.
        explained: the tables of `storage.explained` that are there.
    """

    store: RunDirectory
    shown: str
    record: Record
    groups: pa.Table | None
    scores: pa.Table | None
    curve: pa.Table | None
    removed: Mapping[str, frozenset[int]] | None
    metrics: Metrics | None
    others: Mapping[str, Metrics]
    explained: Mapping[str, pa.Table]

    @functools.cached_property
    def scored(self) -> list[str]:
        """Names of the groups that are scored, in the network's order."""
        if self.groups is not None:
            rows = self.groups.to_pylist()
            return [row["group"] for row in rows if row["status"] == "scored"]
        return [] if self.scores is None else list(by_group(self.scores))

    @functools.cached_property
    def scores_of(self) -> dict[str, pa.Table]:
        """A group's rows of ``scores.parquet``, by unit."""
        return {} if self.scores is None else by_group(self.scores.sort_by("unit"))

    @functools.cached_property
    def units_of(self) -> dict[str, pa.Table]:
        """A group's rows of ``explain/units.parquet``, by unit."""
        found = self.explained.get("units")
        return {} if found is None else by_group(found.sort_by("unit"))

    @functools.cached_property
    def unit_facts(self) -> dict[tuple[str, int], dict[str, Any]]:
        """A unit's row of ``explain/units.parquet``."""
        found = self.explained.get("units")
        rows = [] if found is None else found.to_pylist()
        for row in rows:
            if row["positive"] == row["negative"] == 0:
                row["serves"] = None  # a unit that does nothing serves no class, not the first
        return {(row["group"], row["unit"]): row for row in rows}

    @functools.cached_property
    def carded(self) -> frozenset[tuple[str, int]]:
        """Groups and units that have a card."""
        cards = self.explained.get("cards")
        if cards is None:
            return frozenset()
        return frozenset(zip(cards["group"].to_pylist(), cards["unit"].to_pylist()))

    def is_removed(self, group: str, unit: int) -> bool | None:
        """None where nothing was cut."""
        return None if self.removed is None else unit in self.removed.get(group, ())

    def class_key(self, label: int) -> str:
        """By which a class is sorted: its name, else its number."""
        known = self.record.class_names
        return known[label] if 0 <= label < len(known) else f"{label:06d}"

    def class_scores(self, columns: list[str]) -> Iterator[pa.Table]:
        """Parts of ``class_scores.parquet``, which may be large; nothing if it is not there."""
        return _parts(self.store, names.CLASS_SCORES, schemas.CLASS_SCORES, columns)


def read_run(store: RunDirectory) -> Run:
    """All that the report is made of, but the scores by class.

    Raises:
        JobError: there is no run, or a file is damaged or not one of this program's.
        StorageError: a file cannot be read, or is no table of this program's.
    """
    record = read_record(store, names.RUN, Record)
    if record is None:
        raise JobError(
            f"{store.shown}/{names.RUN}: no such file; a report needs the output folder of a run "
            "(python -m shapray.run JOB.yaml makes one)"
        )
    plan = read_record(store, f"{names.CUTS}/{names.PLAN}", CutPlan)
    removed = None
    if plan is not None:
        removed = {name: frozenset(of.removed) for name, of in plan.groups.items()}
    others = {
        name: read_record(store, f"{names.folder_of(name)}/{names.METRICS}", Metrics)
        for name in store.folders(names.CUTS)
    }
    tables = {
        name: _table(store, names.explained(name), schema)
        for name, schema in explained.TABLES.items()
        if name != "extremes"  # of every unit; the cards hold those of a group's ends
    }
    return Run(
        store=store,
        shown=store.shown,
        record=record,
        groups=_table(store, names.GROUPS, schemas.GROUPS),
        scores=_table(store, names.SCORES, schemas.SCORES),
        curve=_table(store, f"{names.CUTS}/{names.CURVE}", schemas.CURVE),
        removed=removed,
        metrics=read_record(store, f"{names.CUTS}/{names.METRICS}", Metrics),
        others={name: found for name, found in others.items() if found is not None},
        explained={name: found for name, found in tables.items() if found is not None},
    )


def by_group(table: pa.Table) -> dict[str, pa.Table]:
    """The rows of each group, groups in the order in which they come first."""
    found = table["group"].unique().to_pylist()
    return {name: table.filter(pc.equal(table["group"], name)) for name in found}


def array(table: pa.Table, column: str) -> np.ndarray:
    """A column of numbers as float64, NaN where there is none."""
    return table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)


def _table(store: RunDirectory, path: str, schema: pa.Schema) -> pa.Table | None:
    parts = list(_parts(store, path, schema, schema.names))
    return pa.concat_tables(parts) if parts else None


def _parts(
    store: RunDirectory, path: str, schema: pa.Schema, columns: list[str]
) -> Iterator[pa.Table]:
    """The row groups of a table with the columns that `schema` says; an older table may lack those
    that can be null. Nothing if there is no such file."""
    data = store.read(path)
    if data is None:
        return
    wanted = pa.schema([schema.field(name) for name in columns])
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        there = [name for name in columns if name in file.schema_arrow.names]
    except Exception as error:  # damaged bytes make Arrow raise almost anything
        raise _damaged(store, path, one_line(error)) from error
    for name in columns:
        if name not in there and not wanted.field(name).nullable:
            raise _damaged(store, path, f"it has no column '{name}'")
    yield wanted.empty_table()
    for number in range(file.num_row_groups):
        try:
            part = file.read_row_group(number, columns=there)
            for name in columns:
                if name not in there:
                    part = part.append_column(
                        name, pa.nulls(part.num_rows, wanted.field(name).type)
                    )
            yield part.select(columns).cast(wanted)
        except Exception as error:
            raise _damaged(store, path, one_line(error)) from error


def _damaged(store: RunDirectory, path: str, cause: str) -> StorageError:
    return StorageError(
        f"{store.shown}/{path} is damaged or not one of this program's: {cause}; delete it and run "
        "the job again to have it made anew"
    )
