"""The order in which tasks are handed out, and how many at once."""

from dataclasses import dataclass

import pytest

from shapray.cluster.backlog import BATCH_SECONDS, MAX_BATCH, Backlog


@dataclass(frozen=True)
class Task:
    name: str
    cost: float = 1.0


def names(entries):
    return [entry.task.name for entry in entries]


def drain(backlog, seconds_per_task, n_workers):
    """All batches, if one worker after the other took them."""
    batches = []
    while entries := backlog.take(len(batches) % n_workers, n_workers, n_workers):
        batches.append(entries)
        backlog.learn(len(entries), seconds_per_task * len(entries), n_workers)
    return batches


def test_costly_tasks_first_and_equal_ones_in_their_order():
    costs = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0}
    backlog = Backlog(Task(name, cost) for name, cost in costs.items())
    assert [names(batch) for batch in drain(backlog, 9.0, 2)] == [["b"], ["d"], ["c"], ["a"]]
    assert len(backlog) == 0


def test_short_tasks_come_in_batches_that_shrink_at_the_end():
    sizes = [len(batch) for batch in drain(Backlog(Task("x") for _ in range(10_000)), 1e-6, 2)]
    assert sum(sizes) == 10_000
    assert sizes[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert max(sizes) == MAX_BATCH
    assert sizes[-1] == 1
    assert len(sizes) < 10_000 / MAX_BATCH + 50


@pytest.mark.parametrize("seconds", [BATCH_SECONDS / 10, BATCH_SECONDS / 3])
def test_a_batch_takes_about_as_long_as_it_should(seconds):
    sizes = [len(batch) for batch in drain(Backlog(Task("x") for _ in range(1000)), seconds, 1)]
    assert BATCH_SECONDS / 2 < max(sizes) * seconds < BATCH_SECONDS * 1.5


def test_batches_shrink_at_once_when_tasks_turn_out_to_be_long():
    backlog = Backlog(Task("x") for _ in range(10_000))
    for _ in range(8):
        backlog.learn(len(backlog.take(0, 1, 1)), 1e-4, 1)
    entries = backlog.take(0, 1, 1)
    assert len(entries) == MAX_BATCH
    backlog.learn(MAX_BATCH, 60.0, 1)
    assert len(backlog.take(0, 1, 1)) == 1


def test_a_task_that_failed_comes_first_alone_and_to_another_worker():
    backlog = Backlog(Task(name) for name in "abcdefgh")
    [failed] = backlog.take(7, 2, 2)
    failed.attempts, failed.avoid = 1, 7
    backlog.put_back([failed])
    assert names(backlog.take(7, 2, 2)) == ["b"]
    assert backlog.take(8, 2, 2) == [failed]
    backlog.put_back([failed])
    assert backlog.take(7, 1, 2) == [failed]  # there is no other worker


def test_tasks_that_were_not_begun_come_again_as_they_were():
    backlog = Backlog(Task(str(number), 100.0 - number) for number in range(100))
    backlog.learn(1, 1e-6, 1)
    backlog.learn(2, 1e-6, 1)
    entries = backlog.take(0, 1, 1)
    assert names(entries) == ["0", "1", "2", "3"]
    backlog.put_back(entries[1:])
    assert len(backlog) == 99
    assert names(backlog.take(0, 1, 1)) == ["1", "2", "3", "4"]
