"""What is reduced over channels, told which of them count."""

import pytest
import torch

from shapray.network.reduced import KINDS, Reduced


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kept", [[0, 2, 3], [1]])
def test_of_those_that_count_it_is_what_it_is_without_the_others(kind, kept):
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    reduced = Reduced(kind, (1,), 1, keepdim=False, correction=1)
    weight = torch.zeros(2, 4, 3)
    weight[:, kept] = 1.0
    found = reduced.of_kept(x.masked_fill(weight == 0, torch.nan), weight)
    assert torch.allclose(found, reduced(x[:, kept]), atol=1e-6)
    assert not reduced.of_kept(x, torch.zeros_like(x)).any()


@pytest.mark.parametrize("kind", ["norm", "std"])
def test_of_zeros_the_gradient_is_zero(kind):
    x = torch.zeros(1, 4, requires_grad=True)
    Reduced(kind, (1,), 1, keepdim=True).of_kept(x, torch.ones(1, 4)).backward()
    assert torch.equal(x.grad, torch.zeros(1, 4))


def test_one_entry_has_no_deviation():
    reduced = Reduced("var", (1,), 1, keepdim=True, correction=1)
    assert torch.equal(reduced(torch.ones(2, 1)), torch.zeros(2, 1))
