import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from shapray.pruning.evaluate import Tally, count_macs, tally
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


def test_tally_by_hand():
    model = Lookup(torch.tensor([[0.0, 0.0], [1.0, 3.0], [math.log(3), 0.0]])).eval()
    found = tally(model, rows(1, 2, 2), torch.tensor([1, 0, 1]))
    assert (found.n, found.n_correct) == (3, 2)
    loss = math.log(1 + math.exp(-2)) + math.log(4 / 3) + math.log(4)
    assert found.loss_sum == pytest.approx(loss, rel=1e-6)
    assert found.top1 == pytest.approx(2 / 3)
    assert found.loss == pytest.approx(loss / 3, rel=1e-6)


def test_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    model = Lookup(torch.randn(50, 10, generator=generator)).eval()
    labels = torch.randint(10, (50,), generator=generator)
    whole = tally(model, rows(*range(50)), labels)
    parts = [tally(model, rows(*range(i, i + 10)), labels[i : i + 10]) for i in range(0, 50, 10)]
    total = sum(parts, Tally(0, 0, 0.0))
    assert (total.n, total.n_correct) == (whole.n, whole.n_correct)
    assert total.loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)


def test_loss_of_a_sure_network_is_not_rounded_away():
    model = Lookup(torch.tensor([[40.0, 0.0]])).eval()
    assert tally(model, rows(0), torch.tensor([0])).loss == pytest.approx(math.exp(-40), rel=1e-3)


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
