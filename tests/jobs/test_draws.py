"""What units are worth on a draw of images: kept, and gone on with."""

import pyarrow.parquet as pq
import pytest
import torch

from jobs.benchmarks.draws import Draw, Trained, ranking, shapley_scores
from shapray.zoo import digits_cnn


@pytest.fixture
def trained():
    torch.manual_seed(0)
    return Trained.of("resnet20", digits_cnn().eval(), torch.randn(1, 1, 8, 8))


@pytest.fixture
def draw(tmp_path):
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return Draw(0, images, torch.arange(4), ["a", "b", "c", "d"], tmp_path / "scores.parquet")


def test_scoring_that_was_stopped_goes_on_with_the_groups_that_are_left(trained, draw):
    whole = shapley_scores(trained, draw)
    n_first = trained.groups[0].n_units
    pq.write_table(whole.slice(0, n_first), draw.scores)
    assert shapley_scores(trained, draw).equals(whole)
    names = [group.name for group in trained.groups]
    assert list(dict.fromkeys(whole["group"].to_pylist())) == names


def test_rankings_by_their_names(trained, draw):
    table = shapley_scores(trained, draw)
    by_mean = ranking(trained, draw, "mean_abs + 2*standard_error").scores
    expected = table["mean_abs"].to_numpy() + 2 * table["standard_error"].to_numpy()
    found = [value for group in trained.groups for value in by_mean[group.name]]
    assert found == expected.tolist()
    assert ranking(trained, draw, "random-1").orders != ranking(trained, draw, "random-2").orders
    both = ranking(trained, draw, "l1_norm & mean_abs")
    assert {name: len(order) for name, order in both.orders.items()} == {
        group.name: group.n_units for group in trained.groups
    }
