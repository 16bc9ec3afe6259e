"""Shards: where each lies, how it is published, and whether one that is there may be used."""

import io
import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shapray.storage.retry import patiently
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import SHARD

_FINGERPRINT, _GROUP, _ROWS = b"shapray.fingerprint", b"shapray.group", b"shapray.rows"


class UnsoundShard(ValueError):
    """A shard that must not be used; the message says why."""


def shard_path(group: str, first: int, last: int) -> str:
    """Where the shard of images ``first`` up to but not including ``last`` of `group` lies.

    The group's name is percent-encoded, so it can neither leave its folder nor add one.
    """
    return f"shards/group={quote(group, safe='')}/images-{first:06d}-{last:06d}.parquet"


def publish_shard(
    store: RunDirectory, group: str, first: int, last: int, table: pa.Table, fingerprint: str
) -> int:
    """Publish the rows of images ``first`` up to ``last`` of `group`; returns the bytes."""
    assert table.num_rows == last - first, (table.num_rows, first, last)
    schema = SHARD.with_metadata(
        {
            _FINGERPRINT: fingerprint.encode(),
            _GROUP: group.encode(),
            _ROWS: str(table.num_rows).encode(),
        }
    )
    return store.publish_table(shard_path(group, first, last), [table], schema)


def list_shards(
    store: RunDirectory,
) -> set[str]:
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
) -> pa.Table:
    """The shard of the images `image_ids`, which begin at `first`, after checking it in full.

    Raises:
        UnsoundShard: absent, torn, changed bytes, or of another group, cut, set of images or
            fingerprint; the message says which.
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
        raise UnsoundShard(f"it is torn or damaged ({str(error).splitlines()[0]})") from error
    _check_shard(table, metadata, group, n_units, image_ids, fingerprint)
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
        raise UnsoundShard(f"it is of group {metadata.get(_GROUP, b'(none)').decode()!r}")
    if not table.schema.equals(SHARD):
        raise UnsoundShard(f"its columns are {table.schema.names}, with other names or types")
    if not table.num_rows == len(image_ids) == int(metadata.get(_ROWS, b"-1")):
        raise UnsoundShard(f"it has {table.num_rows} rows; it should have {len(image_ids)}")
    if table["image_id"].to_pylist() != list(image_ids) or set(table["group"].to_pylist()) != {
        group
    }:
        raise UnsoundShard("its rows are of other images or of another group")
    for column in ("shapley_value", "standard_error", "active"):
        lengths = set(pc.list_value_length(table[column]).to_pylist())
        if lengths != {n_units}:
            raise UnsoundShard(f"{column} has {sorted(lengths)} entries; the group has {n_units}")
