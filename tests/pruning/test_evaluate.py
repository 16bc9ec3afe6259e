import json
import math
import statistics

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from shapray.config import Prune
from shapray.pruning.curve import Measurement, curve_table, measurements_json
from shapray.pruning.cuts import Compared, Cut
from shapray.pruning.evaluate import Tally, count_macs, joined, paired_difference, tally
from shapray.zoo import resnet20


class Lookup(nn.Module):
    """The logits of image i are row i of a table; an image is its row number."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits[x[:, 0, 0, 0].long()]


def rows(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1)


def of(hits: str, losses: list[float] | None = None, n_classes: int = 2) -> Tally:
    """A tally of images with label 1; ``x`` is a hit."""
    ranks = np.array([0 if mark == "x" else 1 for mark in hits], np.int32)
    found = np.ones(len(hits)) if losses is None else np.array(losses)
    return Tally(np.ones(len(hits), np.int32), ranks, found, n_classes)


def test_tally_by_hand():
    model = Lookup(torch.tensor([[0.0, 0.0], [1.0, 3.0], [math.log(3), 0.0]])).eval()
    found = tally(model, rows(1, 2, 2), torch.tensor([1, 0, 1]))
    losses = [math.log(1 + math.exp(-2)), math.log(4 / 3), math.log(4)]
    assert found.hits.tolist() == [True, True, False]
    assert found.losses == pytest.approx(losses, rel=1e-6)
    assert found.n == 3
    assert found.top1 == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(sum(losses) / 3, rel=1e-6)
    assert found.top5 is None
    assert found.per_class == (1.0, 0.5)
    half = 1.959964 * statistics.stdev(losses) / math.sqrt(3)
    assert found.loss_interval == pytest.approx((found.loss - half, found.loss + half), rel=1e-5)


@pytest.mark.parametrize("slices", [[50], [10] * 5, [1, 30, 19]])
def test_images_count_the_same_however_they_are_sliced(slices):
    generator = torch.Generator().manual_seed(0)
    model = Lookup(torch.randn(50, 10, generator=generator)).eval()
    labels = torch.randint(7, (50,), generator=generator)  # no image of the last three classes
    images, parts = rows(*range(50)), zip(rows(*range(50)).split(slices), labels.split(slices))
    found = joined(tally(model, *part) for part in parts)
    whole = tally(model, images, labels)
    for name in ("n", "top1", "top1_interval", "top5", "per_class", "loss", "loss_interval"):
        assert getattr(found, name) == getattr(whole, name), name
    assert found.per_class[7:] == (None, None, None)
    best = model.logits.topk(5).indices
    assert found.top1 == (best[:, 0] == labels).double().mean()
    assert found.top5 == (best == labels[:, None]).any(dim=1).double().mean()


def test_of_equal_logits_the_first_class_is_the_answer():
    model = Lookup(torch.zeros(1, 7)).eval()
    found = tally(model, rows(*[0] * 7), torch.arange(7))
    assert found.per_class == (1.0, *[0.0] * 6)
    assert found.top5 == 5 / 7


def test_logits_that_are_no_numbers_hit_nothing():
    nan, inf = math.nan, math.inf
    model = Lookup(torch.tensor([[nan, nan], [nan, 1.0], [0.0, -inf], [2.0, 1.0]])).eval()
    found = tally(model, rows(0, 0, 1, 1, 2, 3), torch.tensor([0, 1, 0, 1, 1, 0]))
    assert found.hits.tolist() == [False, False, False, False, False, True]
    assert found.losses[4] == inf


def test_loss_of_a_sure_network_is_not_rounded_away():
    model = Lookup(torch.tensor([[40.0, 0.0]])).eval()
    assert tally(model, rows(0), torch.tensor([0])).loss == pytest.approx(math.exp(-40), rel=1e-3)


# ---- intervals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_hits", "n", "interval"),
    [
        # Newcombe 1998, Interval estimation for the single proportion, table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_published_wilson_intervals(n_hits, n, interval):
    found = of("x" * n_hits + "." * (n - n_hits)).top1_interval
    assert found == pytest.approx(interval, abs=5e-5)
    assert 0 <= found[0] <= n_hits / n <= found[1] <= 1


def test_wilson_intervals_end_where_shares_do():
    for n in range(1, 100):
        assert of("x" * n).top1_interval[1] == 1
        assert of("." * n).top1_interval[0] == 0


def test_paired_difference_by_hand():
    a, b = of("xxx..xxx"), of("x..x.xxx")
    differences = [0, 1, 1, -1, 0, 0, 0, 0]
    half = 1.959964 * statistics.stdev(differences) / math.sqrt(8)
    assert paired_difference(a, b) == pytest.approx((1 / 8, 1 / 8 - half, 1 / 8 + half))
    assert paired_difference(b, a) == pytest.approx((-1 / 8, -1 / 8 - half, -1 / 8 + half))


def test_networks_with_the_same_hits_do_not_differ():
    assert paired_difference(of("xx.x"), of("xx.x")) == (0, 0, 0)


def test_a_single_image_says_nothing_of_the_spread():
    assert of("x").loss_interval is None
    assert paired_difference(of("x"), of(".")) == (1, -1, 1)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_what_is_not_finite_is_null_in_reports(loss):
    kept = Cut("shapley-0.5", "shapley", None, 0.5, {"a": [0]}, ())
    compared, prune = Compared(kept, kept, ()), Prune(ratio=0.5, repair=[])
    timed = {"whole": [], "after": []}
    tallies = [of("xx.", [0.1, 0.2, 3.0], n_classes=7), of("x..", [0.1, loss, 3.0], n_classes=7)]
    found = [Measurement(cut, tally, 10, 20, 30) for cut, tally in zip(compared.all, tallies)]
    metrics = json.loads(
        json.dumps(measurements_json(found, compared, prune, timed), allow_nan=False)
    )
    assert metrics["before"]["loss_low"] < 1.1 < metrics["before"]["loss_high"]
    assert metrics["before"]["per_class"] == [None, 2 / 3, *[None] * 5]
    after = metrics["after"]
    assert (after["loss"], after["loss_low"], after["loss_high"]) == (None, None, None)
    assert after["top1_low"] < after["top1"] == 1 / 3 < after["top1_high"]
    [_, row] = curve_table(found, n_units=2, key="ratio").to_pylist()
    assert {key: after[key] for key in row.keys() & after.keys()} == {
        key: row[key] for key in row.keys() & after.keys()
    }
    assert row["top5"] == 1.0
    assert row["loss_low"] is None


# ---- size ------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 4 * 6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.relu(self.bn(self.depthwise(self.conv(x)))).flatten(1))


@pytest.mark.parametrize("context", [torch.enable_grad, torch.inference_mode])
def test_closed_form_of_parameters_and_multiply_adds(context):
    with context():
        found = count_macs(Mixed().eval(), torch.zeros(1, 3, 8, 12))
    pixels = 4 * 6
    macs = pixels * 8 * 3 * 9 + pixels * 8 * 25 + 8 * pixels * 10
    parameters = (8 * 3 * 9 + 8) + 8 * 25 + 2 * 8 + (8 * pixels * 10 + 10)
    assert found == (parameters, macs)


def test_published_sizes():
    # He et al. 2015, table 6: 0.27 M parameters; 40.6 M multiply-adds with option A shortcuts.
    parameters, macs = count_macs(resnet20().eval(), torch.zeros(1, 3, 32, 32))
    assert (parameters, macs) == (269_722, 40_551_040)
    # torchvision's weights page: 11,689,512 parameters, 1.81 GFLOPS (multiply-adds).
    parameters, macs = count_macs(torchvision.models.resnet18().eval(), torch.zeros(1, 3, 224, 224))
    assert parameters == 11_689_512
    assert macs == pytest.approx(1.81e9, rel=0.005)
