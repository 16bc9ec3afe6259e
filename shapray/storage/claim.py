"""One driver at a time: the claim that a run directory's driver holds and keeps fresh.

The claim is a file that says who drives. It is renewed every few seconds; one that somebody has
watched for a minute without seeing it change belongs to a driver that is gone, and whoever watched
takes it over. The watcher's own monotonic clock counts that minute: clocks of two hosts need not
agree, so the times in the file are for people only. Of a driver on the watcher's own machine no
time need pass, its process is looked up. Two drivers that meet all the same harm no number (shards
are whole, and the same whoever writes them), but the one that lost the claim stops.
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
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory

CLAIM = "claim.json"
RENEW_SECONDS = 5.0
EXPIRE_SECONDS = 60.0
SETTLE_SECONDS = 1.0  # within it, others who took a dead claim over at once have written too

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
            self._await_end()
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
        # What cannot be deleted is found dead by whoever comes next.
        with contextlib.suppress(StorageError):
            if self._is_mine(self._read()):
                self.store.remove(CLAIM)

    def _await_end(self) -> None:
        """Returns once the claim that is there is gone, or seen to be a dead driver's.

        Raises:
            JobError: it is a living one's.
        """
        first = found = self._read()
        looked, unchanged = time.monotonic(), 0.0
        while found is not None and not self._is_mine(found) and unchanged < EXPIRE_SECONDS:
            alive = _is_alive(found)
            if alive is False:
                return
            if alive or found != first:
                raise self._held_by(found)
            if not unchanged:
                logger.warning(
                    "%s is claimed by process %s on %s; watching for %.0f s whether it lives",
                    *(self.store.shown, found.get("pid"), found.get("host"), EXPIRE_SECONDS),
                )
            time.sleep(RENEW_SECONDS / 10)
            found, before, looked = self._read(), looked, time.monotonic()
            # Not all of a pause: while the storage stalls, a living driver cannot renew either.
            unchanged += min(looked - before, RENEW_SECONDS)

    def _held_by(self, holder: dict[str, Any] | None) -> JobError:
        if not holder:
            return JobError(
                f"output: {self.store.shown}/{CLAIM} was deleted or overwritten just now, so "
                "another driver may be at work there. Make sure that none is, and give the same "
                "command again"
            )
        return JobError(
            f"output: {self.store.shown} is being worked on by another driver, process "
            f"{holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}; its claim "
            f"({CLAIM}) expires at {holder.get('expires')} by that host's clock, unless it is "
            f"renewed as every {RENEW_SECONDS:.0f} s. Wait for it, or stop it and give the same "
            "command again"
        )

    def _keep_fresh(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                holder = self._read()
                if holder is None:
                    self.lost = "its claim was deleted"
                    return
                if not self._is_mine(holder):
                    self.lost = (
                        f"it was taken over by process {holder.get('pid')} on "
                        f"{holder.get('host')} at {holder.get('since')}"
                        if holder
                        else f"something that is no claim was written to its {CLAIM}"
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
        """The claim that is there, None if none is, empty if what is there is no claim."""
        for pause in (RENEW_SECONDS / 10, 0.0):
            data = self.store.read(CLAIM)
            if data is None:
                return None
            found = _parsed(data)
            if found:
                return found
            time.sleep(pause)  # not all storage writes a file in one step
        return {}


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
        return store.read(names.RUN) is not None
    return False


def _parsed(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(data):
            case {"id": str(), "pid": int()} as found:
                return found
    return {}


def _is_alive(holder: dict[str, Any]) -> bool | None:
    """Whether a claim's driver is; None if only watching can tell."""
    if not holder:
        return False
    if holder.get("machine") is None or holder["machine"] != _machine():
        return None
    process = _process(holder["pid"])
    if process is None or process != holder.get("process"):
        return False
    # This process may have left a claim that it could not delete.
    return None if holder["pid"] == os.getpid() else True


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
