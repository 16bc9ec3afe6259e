"""Who drives a run directory: one at a time, and another only when that one is gone."""

import itertools
import multiprocessing
import os
import socket
import threading
import time

import pytest
from faulty_s3 import BUCKET, faulty_s3

from shapray.errors import JobError, StorageError
from shapray.storage import claim
from shapray.storage.claim import CLAIM, ClaimLost, claimed
from shapray.storage.run_directory import RunDirectory


@pytest.fixture(scope="module")
def s3():
    with faulty_s3() as server:
        yield server


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path):
    if request.param == "s3":
        request.getfixturevalue("s3")
    url = {"local": f"{tmp_path}/run", "memory": "memory://run", "s3": f"s3://{BUCKET}/run"}
    store = RunDirectory(f"{url[request.param]}-{tmp_path.name}")
    store.publish("groups.parquet", b"of an earlier run")
    return store


@pytest.fixture
def hasty(monkeypatch):
    """A claim's times, a hundredth of what they are."""
    monkeypatch.setattr(claim, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(claim, "EXPIRE_SECONDS", 0.6)
    monkeypatch.setattr(claim, "SETTLE_SECONDS", 0.2)


def left_by(store, **changes):
    """The claim of a driver on another host that wrote it a moment ago and then no more."""
    with claimed(store):
        content = store.read_json(CLAIM)
    store.publish_json(CLAIM, content | {"id": "other", "host": "far", "machine": "far"} | changes)


def test_the_claim_says_who_drives_and_goes_with_the_driver(store):
    with claimed(store):
        content = store.read_json(CLAIM)
        assert content["pid"] == os.getpid()
        assert content["host"] == socket.gethostname()
        assert content["since"] <= content["renewed"] < content["expires"]
    assert store.read(CLAIM) is None
    assert store.read("groups.parquet") is not None


def test_it_goes_after_an_error_too(store):
    with pytest.raises(ZeroDivisionError), claimed(store):
        raise ZeroDivisionError
    assert store.read(CLAIM) is None


def test_a_second_driver_is_told_of_the_first(store, hasty):
    with claimed(store) as first:
        with pytest.raises(JobError) as refused, claimed(store):
            pytest.fail("two drivers at once")
        content = store.read_json(CLAIM)
        for part in (f"process {os.getpid()} on {content['host']}", content["since"], "renews"):
            assert part in str(refused.value)
        first.check()  # nothing happened to it
    with claimed(store):
        pass


def test_of_many_at_once_one_is_let_in(tmp_path, hasty):
    """Threads would share the pid; what they share of a claim is nothing."""
    store, entered, refused = RunDirectory(str(tmp_path)), [], []
    start, over = threading.Barrier(8), threading.Event()

    def drive():
        start.wait()
        try:
            with claimed(store):
                entered.append(1)
                over.wait()
        except JobError:
            refused.append(1)

    threads = [threading.Thread(target=drive) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 30
    while len(refused) < 7 and time.monotonic() < until:
        time.sleep(0.01)
    over.set()
    for thread in threads:
        thread.join()
    assert (len(entered), len(refused)) == (1, 7)


def test_a_dead_drivers_claim_expires(store, hasty):
    left_by(store)
    with claimed(store) as mine:
        time.sleep(0.3)
        mine.check()
    assert store.read(CLAIM) is None


def test_a_clock_that_is_fast_elsewhere_does_not_keep_others_out(store, hasty):
    left_by(store, renewed="2999-01-01T00:00:00+00:00", expires="2999-01-01T00:01:00+00:00")
    with claimed(store):
        pass


def test_a_clock_that_is_slow_elsewhere_costs_no_driver_its_claim(store, hasty):
    left_by(store, renewed="2001-01-01T00:00:00+00:00", expires="2001-01-01T00:01:00+00:00")
    content, over = store.read_json(CLAIM), threading.Event()

    def renew():
        for n in itertools.count():
            if over.wait(claim.RENEW_SECONDS) or store.read_json(CLAIM)["id"] != "other":
                return
            store.publish_json(CLAIM, content | {"renewed": f"2001-01-01T00:00:01.{n:06}+00:00"})

    driver = threading.Thread(target=renew)
    driver.start()
    with pytest.raises(JobError, match=r"another driver, process \d+ on far"), claimed(store):
        pytest.fail("taken over from a living driver")
    assert driver.is_alive()  # its claim is still its own
    over.set()
    driver.join()


def test_a_claim_that_this_process_could_not_delete_is_taken_over(store, hasty):
    """The process lives, so it is the claim that has to show."""
    left_by(store, machine=claim._machine())
    with claimed(store):
        pass


def test_a_process_of_this_machine_that_has_ended_holds_nothing(store):
    child = multiprocessing.get_context("spawn").Process(target=int)
    child.start()
    child.join()
    left_by(store, machine=claim._machine(), pid=child.pid)
    with claimed(store):  # at once: the times are the real ones
        assert store.read_json(CLAIM)["pid"] == os.getpid()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[1]",
        b"null",
        b"[" * 10**5,
        b'{"expires": "soon"}',
        b'{"id": "x", "pid": "1"}',
    ],
)
def test_a_file_that_is_no_claim_is_replaced(store, hasty, content):
    store.publish(CLAIM, content)
    with claimed(store):
        assert store.read_json(CLAIM)["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("how", "message"),
    [("taken over", "taken over by .* on far"), ("damaged", "no claim"), ("deleted", "deleted")],
)
def test_a_driver_that_lost_its_claim_stops(store, hasty, how, message):
    with claimed(store) as mine:
        theirs = store.read_json(CLAIM) | {"id": "other", "host": "far"}
        until = time.monotonic() + 20
        while mine.lost is None and time.monotonic() < until:
            # again and again, as it may just have been about to renew its own
            if how == "taken over":
                store.publish_json(CLAIM, theirs)
            elif how == "damaged":
                store.publish(CLAIM, b"[]")
            else:
                store.remove(CLAIM)
            time.sleep(0.02)
        with pytest.raises(ClaimLost, match=message):
            mine.check()
    assert (store.read(CLAIM) is None) == (how == "deleted")  # another's stays


def test_a_claim_that_cannot_be_renewed_is_given_up(s3, tmp_path, hasty):
    store = RunDirectory(f"s3://{BUCKET}/{tmp_path.name}")
    with claimed(store) as mine:
        s3.shards_allowed = 0
        until = time.monotonic() + 20
        while mine.lost is None and time.monotonic() < until:
            time.sleep(0.01)
        s3.shards_allowed = None
        with pytest.raises(ClaimLost, match="could not be renewed"):
            mine.check()


def test_where_nothing_can_be_written(s3, tmp_path):
    store = RunDirectory(f"s3://{BUCKET}/{tmp_path.name}")
    s3.shards_allowed = 0
    refused = pytest.raises(JobError, match=r"output: cannot write .*claim\.json.*Access Denied")
    with refused, claimed(store):
        pass
    s3.shards_allowed = None
    store.publish_json("run.json", {})
    s3.shards_allowed = 0
    refused = pytest.raises(StorageError, match=r"cannot write .*claim\.json.*Access Denied")
    with refused, claimed(store):
        pass
    s3.shards_allowed = None


def test_a_folder_made_only_for_the_claim_goes_with_it(tmp_path):
    with claimed(RunDirectory(str(tmp_path / "run"))):
        pass
    assert list(tmp_path.iterdir()) == []
