"""Sizes of batches on a GPU: few, near what is asked, and never above what there is room for."""

from shapray.engine.tail import STEPS, batch_size, largest_batch


def test_sizes_of_batches():
    for n_rows in range(1, 5000):
        assert n_rows <= batch_size(n_rows) < n_rows * (1 + 1 / STEPS) + 1
        assert largest_batch(n_rows) <= n_rows
        assert batch_size(largest_batch(n_rows)) == largest_batch(n_rows)
    assert len({batch_size(n) for n in range(2049, 4097)}) == STEPS
    assert batch_size(4096) == largest_batch(4096) == 4096
