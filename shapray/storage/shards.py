"""Shards: where each lies, how it is published, and whether one that is there may be used.

All shards of a run are one table to pandas, Arrow and DuckDB. A shard has the column `group` and
lies in a folder ``group=<name>``, so that each file and each folder speaks for itself; but Arrow
takes the types of the columns from the first file, that of a folder's key from all folders, and
wants both to be the same. No type of the column is: of the same folders `pandas.read_parquet` makes
a dictionary and `pyarrow.dataset` a string. So before all shards there is a file without rows
(`columns_path`) that has all columns but `group`, which leaves that one to the folders. Only who
tells Arrow to ignore the folders (``partitioning=None``) does not see the groups.
"""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shapray.storage.retry import patiently
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import SHARD
from shapray.text import one_line

_SAMPLING = SHARD.get_field_index("sampling")
_WITHOUT_SAMPLING = SHARD.remove(_SAMPLING)  # what earlier versions wrote

_FINGERPRINT, _GROUP, _ROWS = b"shapray.fingerprint", b"shapray.group", b"shapray.rows"
_PRICE = b"shapray.price"  # earlier versions did not write it


class UnsoundShard(ValueError):
    """A shard that must not be used; the message says why."""


def shard_path(group: str, first: int, last: int) -> str:
    """Where the shard of images ``first`` up to but not including ``last`` of `group` lies.

    The group's name is percent-encoded, so it can neither leave its folder nor add one.
    """
    return f"shards/group={quote(group, safe='')}/images-{first:06d}-{last:06d}.parquet"


def publish_shard(
    store: RunDirectory,
    group: str,
    first: int,
    last: int,
    table: pa.Table,
    fingerprint: str,
    price: str,
) -> int:
    """Publish the rows of images ``first`` up to ``last`` of `group`; returns the bytes.

    Args:
        price: in words, at which those that are not exact were sampled.
    """
    assert table.num_rows == last - first, (table.num_rows, first, last)
    schema = SHARD.with_metadata(
        {
            _FINGERPRINT: fingerprint.encode(),
            _GROUP: group.encode(),
            _ROWS: str(table.num_rows).encode(),
            _PRICE: price.encode(),
        }
    )
    return store.publish_table(shard_path(group, first, last), [table], schema)


def columns_path(groups: Iterable[str]) -> str:
    """Where the file lies that makes the shards of some groups one table to other programs.

    Its path comes before those of all shards, and has not their ending, so that DuckDB, which
    reads ``**/*.parquet``, passes it over. If all groups are called by numbers, as modules of a
    Sequential are, Arrow would make integers of the names; a folder that is no number prevents it.
    """
    numbers = all(re.fullmatch(r"[+-]?\d+", group) for group in groups)
    return "shards/group=!no-group/columns" if numbers else "shards/columns"


def publish_columns(store: RunDirectory, groups: Iterable[str]) -> None:
    """Publish the file at `columns_path`."""
    schema = SHARD.remove(SHARD.get_field_index("group"))
    store.publish_table(columns_path(groups), [], schema)


def list_shards(store: RunDirectory) -> set[str]:
    """Relative paths of all that lies under ``shards/`` with a shard's ending."""
    try:
        found = patiently(lambda: store.fs.find(f"{store.root}/shards"))
    except FileNotFoundError:
        return set()
    except Exception as error:
        raise store.failed("list", "shards", error) from error
    names = (str(path)[len(store.root) + 1 :] for path in found)
    return {name for name in names if re.search(r"/images-\d+-\d+\.parquet$", name)}


def read_shard(
    store: RunDirectory,
    group: str,
    n_units: int,
    first: int,
    image_ids: Sequence[str],
    fingerprint: str,
    price: str | None = None,
) -> pa.Table:
    """The shard of the images `image_ids`, which begin at `first`, after checking it in full.

    The column `sampling`, which earlier versions did not write, is null then.

    Args:
        price: that it must have been sampled at, if it says so; None: at any.
    Raises:
        UnsoundShard: absent, torn, changed bytes, or of another group, cut, set of images,
            fingerprint or price; the message says which.
    """
    path = shard_path(group, first, first + len(image_ids))
    data = store.read(path)
    if data is None:
        raise UnsoundShard("it is not there")
    try:
        file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        table = file.read()
    except Exception as error:  # damaged bytes make Arrow raise almost anything
        raise UnsoundShard(f"it is torn or damaged ({one_line(error)})") from error
    if table.schema.equals(_WITHOUT_SAMPLING):
        unknown = pa.nulls(table.num_rows, pa.string())
        table = table.add_column(_SAMPLING, SHARD.field(_SAMPLING), unknown)
    _check_shard(table, metadata, group, n_units, image_ids, fingerprint)
    sampled_at = metadata.get(_PRICE, b"").decode(errors="replace")
    if price is not None and sampled_at not in ("", price):
        raise UnsoundShard(f"it was sampled by {sampled_at}, this run's price is {price}")
    return table


def _check_shard(
    table: pa.Table,
    metadata: Mapping[bytes, bytes],
    group: str,
    n_units: int,
    image_ids: Sequence[str],
    fingerprint: str,
) -> None:
    found = metadata.get(_FINGERPRINT, b"").decode(errors="replace")
    if found != fingerprint:
        raise UnsoundShard(
            f"its fingerprint is {found[:12] or 'missing'}, this run's is {fingerprint[:12]}"
        )
    if metadata.get(_GROUP) != group.encode():
        name = metadata.get(_GROUP, b"(none)").decode(errors="replace")
        raise UnsoundShard(f"it is of group {name!r}")
    if not table.schema.equals(SHARD):
        raise UnsoundShard(f"its columns are {table.schema.names}, with other names or types")
    written = metadata.get(_ROWS, b"(unknown)").decode(errors="replace")
    if not str(table.num_rows) == str(len(image_ids)) == written:
        raise UnsoundShard(
            f"it has {table.num_rows} rows and was written with {written}; it should have "
            f"{len(image_ids)}"
        )
    if table["image_id"].to_pylist() != list(image_ids) or set(table["group"].to_pylist()) != {
        group
    }:
        raise UnsoundShard("its rows are of other images or of another group")
    for column in ("shapley_value", "standard_error", "active"):
        lengths = set(pc.list_value_length(table[column]).to_pylist())
        if lengths != {n_units}:
            entries = sorted(lengths, key=str)
            raise UnsoundShard(f"{column} has {entries} entries; the group has {n_units}")
