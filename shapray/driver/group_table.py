"""Groups as the rows of ``groups.parquet``, and what those rows say of them."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from shapray.network.group import Group
from shapray.storage.schemas import GROUPS


def groups_table(groups: Sequence[Group], tail_macs: Mapping[str, int]) -> pa.Table:
    """The rows of ``groups.parquet``."""
    rows = [
        {
            "group": group.name,
            "n_units": group.n_units,
            "modules": list(group.modules),
            "kind": group.kind,
            "flat": group.flat,
            "status": "scored" if group.reason is None else "excluded",
            "reason": group.reason,
            "tail_macs": tail_macs.get(group.name),
            "blocks": list(group.blocks) or None,
        }
        for group in groups
    ]
    return pa.Table.from_pylist(rows, schema=GROUPS)


def groups_of(table: pa.Table) -> list[Group]:
    """The groups of a table, as far as it knows them: not which channels of which layers they
    are."""
    return [
        Group(
            row["group"],
            row["n_units"],
            row["kind"],
            tuple(row["modules"]),
            (),
            row["flat"],
            row["reason"],
            blocks=tuple(row.get("blocks") or ()),
        )
        for row in table.to_pylist()
    ]
