"""A run's tables, opened by name: in Arrow, pandas, Polars or SQL, from wherever they lie."""

import functools
import importlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from shapray.analysis.catalogue import (
    IMAGES,
    OF_VALUES,
    REMOVED,
    VALUES,
    VALUES_IN_SQL,
    Source,
    catalogue,
)
from shapray.analysis.glossary import described, glossary
from shapray.errors import JobError
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory
from shapray.storage.shards import list_shards


def tables(run_dir: str, cut: str | None = None) -> "Tables":
    """All tables of a run; nothing is read before it is asked for.

    Args:
        run_dir: the output folder of a run, or ``rounds/N`` in it: a folder or any fsspec URL
            (``s3://...`` with the credentials of the environment).
        cut: whose `curve`, `group_losses` and `removed`: a name below ``prune/``; by default the
            job's own cut.
    Raises:
        ValueError: no run is there, or no such cut.
        OSError: the folder cannot be read.
    """
    store = RunDirectory(run_dir)
    if store.read(names.RUN) is None:
        raise JobError(
            f"{store.shown}/{names.RUN}: no such file; is this the output folder of a run?"
        )
    if cut is not None and cut not in (cuts := store.folders(names.CUTS)):
        raise JobError(
            f"cut: {cut!r}; {store.shown}/{names.CUTS} has "
            + (f"the cuts {', '.join(cuts)}" if cuts else "no cut but the job's own")
        )
    return Tables(store, cut)


class Tables:
    """The tables of a run, from `tables`.

    `groups`, `prices`, `scores`, `class_scores`, `curve`, `group_losses` and those of ``explain/``
    are files of these names. `images` is all shards as one table, a row per group and image,
    `removed` has a row per unit that the cut removes. `glossary` says what their columns hold.

    Every way to open a table is lazy for all of them: `images` may be larger than the memory, and
    only the columns, groups and rows that are asked for are read.
    """

    def __init__(self, store: RunDirectory, cut: str | None) -> None:
        self._store, self._all = store, catalogue(cut)

    def __repr__(self) -> str:
        return f"Tables of {self._store.shown}: {', '.join(self.names)}"

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Of the tables that are there."""
        folders = dict.fromkeys(_folder(source) for source in self._all.values())
        there = {
            f"{folder}/{name}".lstrip("/")
            for folder in folders
            for name in [*self._store.files(folder), *self._store.folders(folder)]
        }
        return tuple(name for name, source in self._all.items() if source.path in there)

    def arrow(self, name: str) -> ds.Dataset:
        """A table as a pyarrow dataset, whose `to_table(columns=, filter=)` reads what is asked.

        Raises:
            ValueError: no such table; says which there are.
            OSError: it cannot be read.
        """
        source = self._source(name)
        if name == IMAGES:
            return self._images(source)
        if name == REMOVED:
            return ds.dataset(self._removed(source))
        table = self._store.read_table(source.path)
        return ds.dataset(table.cast(described(table.schema, source.columns)))

    def pandas(self, name: str, columns: Sequence[str] | None = None, filter: Any = None) -> Any:
        """A table as a pandas data frame, which is in memory.

        Args:
            columns: only these.
            filter: only rows for which a pyarrow expression holds, such as
                ``pyarrow.compute.field("group") == "conv1"``; of `images`, only their files are
                read.
        Raises:
            ValueError: no such table; says which there are.
            ImportError: pandas is not installed.
        """
        _installed("pandas")
        wanted = None if columns is None else list(columns)
        return self.arrow(name).to_table(columns=wanted, filter=filter).to_pandas()

    def polars(self, name: str) -> Any:
        """A table as a Polars LazyFrame: `collect()` reads what the query needs.

        Raises:
            ValueError: no such table; says which there are.
            ImportError: Polars is not installed.
        """
        return _installed("polars").scan_pyarrow_dataset(self.arrow(name))

    def duckdb(self) -> Any:
        """A DuckDB connection of its own with every table as a view of its name.

        Beside them there is the view `values`, `images` laid out: a row per group, image and unit;
        and `glossary`. A query on `images` or `values` reads the columns and groups that it names.

        Raises:
            ImportError: DuckDB is not installed.
        """
        connection = _installed("duckdb").connect()
        for name in self.names:
            table = self.arrow(name)
            connection.register(name, table if name == IMAGES else table.to_table())
        if IMAGES in self.names:
            connection.execute(f'CREATE VIEW "{VALUES}" AS {VALUES_IN_SQL}')
        connection.register("glossary", self.glossary())
        return connection

    def glossary(self) -> pa.Table:
        """What every column holds: table, column, type, unit, meaning; the unit "value" is that of
        the job's value function, nats for a cross-entropy."""
        columns = {name: self.arrow(name).schema for name in self.names}
        if IMAGES in columns:
            columns[VALUES] = OF_VALUES
        return glossary(columns)

    def _source(self, name: str) -> Source:
        if name not in self.names:
            raise JobError(
                f"there is no table {name!r} in {self._store.shown}; there are "
                + (", ".join(self.names) or "none")
            )
        return self._all[name]

    def _images(self, source: Source) -> ds.Dataset:
        """The shards as one: the folder of each says its group, so others' are not opened."""
        store = self._store
        paths = [f"{store.root}/{path}" for path in sorted(list_shards(store))]
        if not paths:
            return ds.dataset(source.columns.empty_table())
        folders = pa.schema([source.columns.field("group")])
        return ds.dataset(
            paths,
            schema=source.columns,
            format="parquet",
            filesystem=store.fs,
            partitioning=ds.partitioning(folders, flavor="hive"),
            partition_base_dir=f"{store.root}/{source.path}",
        )

    def _removed(self, source: Source) -> pa.Table:
        plan = self._store.read_json(source.path) or {}
        rows = [
            {"group": group, "unit": unit}
            for group, found in plan.get("groups", {}).items()
            for unit in found["removed"]
        ]
        return pa.Table.from_pylist(rows, source.columns)


def _folder(source: Source) -> str:
    return source.path.rpartition("/")[0]


def _installed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{package} is not installed; pip install 'shapray[analysis]' brings pandas, polars "
            "and duckdb"
        ) from error
