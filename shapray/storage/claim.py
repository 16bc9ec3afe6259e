"""One driver at a time: the claim that a run directory's driver holds and keeps fresh.

The claim is a file that says who drives. It is renewed every few seconds; one that has not been
for a minute belongs to a driver that is gone, and the next one takes it over. Two drivers that
meet all the same harm no number (shards are whole, and the same whoever writes them), but the one
that lost the claim stops.
"""

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from shapray.errors import JobError, StorageError
from shapray.storage.run_directory import RunDirectory

CLAIM = "claim.json"
RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # within it, others who took an expired claim over at once have written too

logger = logging.getLogger(__name__)


class ClaimLost(RuntimeError):
    """Another driver has taken the run directory over."""


class Claim:
    """This process's claim of a run directory, from `claimed`."""

    def __init__(self, store: RunDirectory) -> None:
        self.store = store
        self.lost: str | None = None  # why
        self._content = {
            "id": uuid.uuid4().hex,
            "host": platform.node(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process": _process(os.getpid()),
            "since": _iso(datetime.now(UTC)),
        }
        self._renewed = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_fresh, daemon=True, name="claim")

    def check(self) -> None:
        """Raises ClaimLost if the run directory is no longer this process's."""
        if self.lost is not None:
            raise ClaimLost(f"{self.store.shown}: {self.lost}; this driver stops")

    def acquire(self) -> None:
        """Write the claim.

        Raises:
            JobError: another driver holds it; says which.
            StorageError: the directory cannot be written.
        """
        if not self.store.create(CLAIM, self._bytes()):
            self._await_end_of(self._read())
            self.store.publish(CLAIM, self._bytes())
            time.sleep(SETTLE_SECONDS)
            holder = self._read()
            if not self._is_mine(holder):
                raise self._held_by(holder)
        self._renewed = time.monotonic()
        self._thread.start()

    def release(self) -> None:
        """Stop renewing; the file goes if it is still this process's."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        # What cannot be deleted expires.
        with contextlib.suppress(StorageError):
            if self._is_mine(self._read()):
                self.store.remove(CLAIM)

    def _await_end_of(self, first: dict[str, Any] | None) -> None:
        """Returns once the claim read first is seen to be a dead driver's.

        A living driver on another host shows itself by renewing, whatever its clock says.
        """
        if first is None or self._is_mine(first):
            return
        until = time.monotonic() + EXPIRE_SECONDS
        found = first
        while time.monotonic() < until:
            alive = _is_alive(found)
            if alive is False:
                return
            if alive or found != first:
                raise self._held_by(found)
            time.sleep(RENEW_SECONDS / 10)
            read = self._read()
            if read is None:
                return
            found = read

    def _held_by(self, holder: dict[str, Any] | None) -> JobError:
        holder = holder or {}
        return JobError(
            f"output: {self.store.shown} is being worked on by another driver, process "
            f"{holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}; its claim "
            f"({CLAIM}) expires at {holder.get('expires')} unless it is renewed. Wait for it, or "
            "stop it and give the same command again"
        )

    def _keep_fresh(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                holder = self._read()
                if not self._is_mine(holder):
                    self.lost = (
                        "its claim was deleted"
                        if holder is None
                        else f"it was taken over by process {holder.get('pid')} on "
                        f"{holder.get('host')} at {holder.get('since')}"
                    )
                    return
                self.store.publish(CLAIM, self._bytes())
                self._renewed = time.monotonic()
            except StorageError as error:
                unrenewed = time.monotonic() - self._renewed
                if unrenewed > EXPIRE_SECONDS:
                    self.lost = f"its claim could not be renewed for {unrenewed:.0f} s ({error})"
                    return

    def _bytes(self) -> bytes:
        now = datetime.now(UTC)
        expires = now + timedelta(seconds=EXPIRE_SECONDS)
        return json.dumps(
            self._content | {"renewed": _iso(now), "expires": _iso(expires)}, indent=2
        ).encode()

    def _is_mine(self, holder: dict[str, Any] | None) -> bool:
        return holder is not None and holder.get("id") == self._content["id"]

    def _read(self) -> dict[str, Any] | None:
        """The claim that is there, None if none is; a file that is no claim is a dead one's."""
        data = self.store.read(CLAIM)
        if data is None:
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(data)
            if isinstance(found, dict):
                return found
        return {"expires": _iso(datetime.fromtimestamp(0, UTC))}


@contextlib.contextmanager
def claimed(store: RunDirectory) -> Iterator[Claim]:
    """The run directory as this process's alone, for the time of the block.

    Raises:
        JobError: another driver works on it, or nothing can be written there at all.
        StorageError: it holds a run already, and nothing can be written there now.
    """
    claim = Claim(store)
    try:
        claim.acquire()
    except StorageError as error:
        if _holds_a_run(store):
            raise
        raise JobError(f"output: {error}") from error
    try:
        yield claim
    finally:
        claim.release()


def _holds_a_run(store: RunDirectory) -> bool:
    with contextlib.suppress(StorageError):
        return store.read("run.json") is not None
    return False


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether a claim's driver is; None if only time can tell."""
    try:
        if datetime.fromisoformat(holder["expires"]) < datetime.now(UTC):
            return False
        if holder["machine"] is None or holder["machine"] != _machine():
            return None
        return _process(holder["pid"]) == holder["process"]
    except (KeyError, TypeError, ValueError):  # not written by this program
        return False


def _machine() -> str | None:
    """Where process numbers mean the same: a boot of a host and its pid namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return None


def _process(pid: int) -> str | None:
    """When a process of this machine started, in ticks of its clock; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()  # its name may hold spaces
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def _iso(time_: datetime) -> str:
    return time_.isoformat(timespec="milliseconds")
