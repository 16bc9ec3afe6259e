"""The tables of ``explain/`` of a run, group by group: what is there, and what was made of what."""

import json
import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from shapray.driver.kept import table_if_sound
from shapray.storage import names
from shapray.storage.explained import TABLES
from shapray.storage.run_directory import RunDirectory

LAST = "units"  # published behind the others, and says which groups these are of
WHOLE = ("class_removal",)  # not group by group
REFRESH_SECONDS = 20.0  # between publications while groups come in
_MADE_OF = b"shapray.made_of"


class Explanations:
    """Of a run that may have been stopped: what is there of the same groups stays.

    Args:
        store: the run's directory.
        keys: group -> digest of all that its rows are made of.
    """

    def __init__(self, store: RunDirectory, keys: Mapping[str, str]) -> None:
        self.store, self.keys = store, keys
        self._parts: dict[str, dict[str, pa.Table]] = {}  # group -> table -> its rows
        self._published = time.monotonic()
        found = {name: self._read(name) for name in TABLES if name not in WHOLE}
        tables = {name: table for name, table in found.items() if table is not None}
        self._is_published = not tables  # nothing that is there is of something else
        if len(tables) == len(found):
            made_of = _made_of(tables[LAST])
            self._is_published = made_of == keys
            for group, key in keys.items():
                if made_of.get(group) == key:
                    self._parts[group] = {
                        name: table.filter(pc.equal(table["group"], group))
                        for name, table in tables.items()
                    }

    def _read(self, name: str) -> pa.Table | None:
        table = table_if_sound(self.store, names.explained(name))
        return table if table is not None and table.schema.equals(TABLES[name]) else None

    @property
    def missing(self) -> list[str]:
        """Groups that nothing is there of."""
        return [group for group in self.keys if group not in self._parts]

    def add(self, group: str, tables: Mapping[str, pa.Table]) -> None:
        """All rows of a group; what is known so far is published now and then."""
        self._parts[group] = dict(tables)
        self._is_published = False
        if time.monotonic() - self._published > REFRESH_SECONDS:
            self.publish()

    def publish(self) -> None:
        """Write what is known, and nothing else, if that is not what is there."""
        if self._is_published:
            return
        there = [name for name in self.keys if name in self._parts]
        for name in sorted(set(TABLES) - set(WHOLE), key=lambda name: (name == LAST, name)):
            parts = [self._parts[group][name] for group in there]
            self._publish(name, parts, {group: self.keys[group] for group in there})
        self._published, self._is_published = time.monotonic(), True

    def whole(self, name: str, key: str) -> bool:
        """Whether one of `WHOLE` is there, made of the same."""
        table = self._read(name)
        return table is not None and _made_of(table).get(name) == key

    def publish_whole(self, name: str, key: str, parts: Sequence[pa.Table]) -> None:
        self._publish(name, parts, {name: key})

    def _publish(self, name: str, parts: Sequence[pa.Table], made_of: Mapping[str, str]) -> None:
        schema = TABLES[name].with_metadata({_MADE_OF: json.dumps(made_of)})
        joined = pa.concat_tables(
            [part.cast(TABLES[name]) for part in parts] or [TABLES[name].empty_table()]
        )
        self.store.publish_table(names.explained(name), [joined], schema)


def forget(store: RunDirectory) -> None:
    """Delete what there is: it is of another cut, or nobody wants it."""
    for name in TABLES:
        store.remove(names.explained(name))


def _made_of(table: pa.Table) -> dict[str, str]:
    found: dict[str, str] = json.loads((table.schema.metadata or {}).get(_MADE_OF, b"{}"))
    return found
