"""What of the images a repair sees, within a memory."""

import copy

import pytest
import torch
from networks import NETWORKS, randomise

from shapray.config import Prune
from shapray.network.find import find_groups
from shapray.pruning import compressed as module
from shapray.pruning.compressed import compressed

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def fitted(monkeypatch):
    """The images that each fit has seen."""
    seen = []
    fit = module.least_squares

    def watch(whole, start, groups, removed, images, seed):
        seen.append(images)
        return fit(whole, start, groups, removed, images, seed)

    monkeypatch.setattr(module, "least_squares", watch)
    return seen


def repaired(n_fitted, name="Residual", seed=0, images=IMAGES):
    torch.manual_seed(0)
    network = randomise(NETWORKS[name]())
    groups = [group for group in find_groups(network, images[:1]) if group.reason is None]
    removed = {groups[0].name: [0]}
    prune = Prune(macs=0.5)
    return compressed(
        network, groups, removed, ["least_squares"], images, None, prune, seed, n_fitted=n_fitted
    )


@pytest.mark.parametrize(
    ("n_fitted", "n_images", "n_views", "note"),
    [
        (None, 12, 4, None),
        (48, 12, 4, None),
        (1000, 12, 4, None),
        (47, 12, 3, "fitted on 3 views of an image, not 4, as many as the memory holds"),
        (23, 12, 1, "fitted on 1 view of an image, not 4, as many as the memory holds"),
        (12, 12, 1, "fitted on 1 view of an image, not 4, as many as the memory holds"),
        (7, 7, 1, "fitted on 7 of 12 images, as many as the memory holds"),
    ],
)
def test_a_fit_sees_so_many_views_as_the_memory_holds(fitted, n_fitted, n_images, n_views, note):
    made = repaired(n_fitted)
    [seen] = fitted
    assert len(seen) == n_images * n_views
    assert torch.equal(seen[:n_images], IMAGES[:n_images])
    notes = [line for line in made.notes if line.startswith("least_squares: ")]
    assert len(notes) == (note is not None)
    assert all(note in line for line in notes)


def test_memory_that_nobody_limits_holds_all_images_and_few_views(fitted, monkeypatch):
    monkeypatch.setattr(module, "images_that_fit", lambda *_: 30)
    made = repaired(None)
    monkeypatch.setattr(module, "images_that_fit", lambda *_: 3)
    repaired(None)
    assert [len(seen) for seen in fitted] == [24, 12]
    assert "fitted on 2 views of an image, not 4" in made.notes[0]


def test_the_same_seed_gives_the_same_network():
    one, same, other = (repaired(None, seed=seed).network.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert not all(torch.equal(value, other[key]) for key, value in one.items())


def test_a_network_that_cannot_be_traced_is_told_apart_from_a_small_memory():
    class Branching(NETWORKS["Residual"]):
        def forward(self, x):
            return super().forward(x if x.sum() > -1e9 else -x)

    network = randomise(Branching())
    groups = [group for group in find_groups(network, IMAGES[:1]) if group.reason is None]
    removed = {groups[0].name: [0]}
    before = copy.deepcopy(network.state_dict())
    made = compressed(
        network, groups, removed, ["least_squares"], IMAGES, None, Prune(macs=0.5), 0, n_fitted=1
    )
    assert not any("memory" in line for line in made.notes)
    assert any("torch.fx cannot trace the network" in line for line in made.notes)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["ChannelsLastMlp", "Residual"])
def test_repairs_follow_each_other(name):
    """Each begins with the network that the one before has made, norms over channels in it."""
    torch.manual_seed(0)
    network = randomise(NETWORKS[name]())
    groups = [group for group in find_groups(network, IMAGES[:1]) if group.reason is None]
    removed = {group.name: [2, 3] for group in groups}
    arguments = (IMAGES, None, Prune(macs=0.5), 0)
    losses = []
    for repair in ([], ["batchnorm", "least_squares"]):
        small = compressed(network, groups, removed, repair, *arguments).network
        losses.append((small(IMAGES) - network(IMAGES)).square().mean())
    assert losses[1] < losses[0]
