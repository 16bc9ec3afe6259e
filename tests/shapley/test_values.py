"""Value functions against their formulas, written out per row in plain Python."""

import math

import pytest
import torch

from shapray.shapley.values import NAMES, POOLED_OUTPUTS, Value

N_IMAGES, N_OUTPUTS, N_ROWS = 5, 7, 40


def softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(z) for z in logits)
    return [math.exp(z) / total for z in logits]


def others(logits: list[float], label: int) -> list[float]:
    return logits[:label] + logits[label + 1 :]


FORMULAS = {
    "neg_cross_entropy": lambda z, label, full: math.log(softmax(z)[label]),
    "target_logit": lambda z, label, full: z[label],
    "logit_margin": lambda z, label, full: z[label] - max(others(z, label)),
    "target_probability": lambda z, label, full: softmax(z)[label],
    "top1": lambda z, label, full: float(z.index(max(z)) == label),
    "neg_kl_divergence": lambda z, label, full: (
        -sum(p * math.log(p / q) for p, q in zip(softmax(full), softmax(z), strict=True))
    ),
}


def draw(n_outputs: int = N_OUTPUTS) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    full = 3 * torch.randn(N_IMAGES, n_outputs, generator=generator, dtype=torch.float64)
    labels = torch.randint(n_outputs, (N_IMAGES,), generator=generator)
    images = torch.randint(N_IMAGES, (N_ROWS,), generator=generator)
    logits = 3 * torch.randn(N_ROWS, n_outputs, generator=generator, dtype=torch.float64)
    return full, labels, images, logits


def test_every_value_of_the_job_file_is_checked_here():
    assert set(FORMULAS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_formula(name):
    full, labels, images, logits = draw()
    found = Value(name, labels, full)(images, logits)
    assert found.dtype == torch.float64
    for value, image, z in zip(found.tolist(), images.tolist(), logits.tolist(), strict=True):
        expected = FORMULAS[name](z, labels[image].item(), full[image].tolist())
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_values_keep_the_precision_of_the_outputs(name):
    full, labels, images, logits = draw()
    assert Value(name, labels, full)(images, logits.float()).dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_stay_finite(name):
    full, labels, images, logits = draw()
    assert Value(name, labels, 300 * full)(images, 300 * logits).isfinite().all()


def test_a_tie_goes_to_the_first_class():
    full, logits = torch.zeros(1, 3), torch.tensor([[2.0, 2.0, 1.0]] * 2)
    images = torch.zeros(2, dtype=torch.int64)
    for label, right in ((0, 1.0), (1, 0.0)):
        assert Value("top1", torch.tensor([label]), full)(images, logits).tolist() == [right] * 2


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"neg_kl_divergence"}))
def test_without_labels(name):
    with pytest.raises(ValueError, match=rf"{name} needs labels.*neg_kl_divergence"):
        Value(name, None, draw()[0])


def test_divergence_without_labels():
    full, labels, images, logits = draw()
    found = Value("neg_kl_divergence", None, full)(images, logits)
    assert torch.equal(found, Value("neg_kl_divergence", labels, full)(images, logits))
    at_full = Value("neg_kl_divergence", None, full)(torch.arange(N_IMAGES), full)
    assert at_full.abs().max() < 1e-12
    assert (found < 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_few_outputs_are_not_pooled(name):
    full, labels, images, logits = draw(POOLED_OUTPUTS)
    value = Value(name, labels, full)
    pooled, pool = value.pooled()
    assert torch.equal(pool(images, logits), logits)
    assert torch.equal(pooled(images, logits), value(images, logits))


@pytest.mark.parametrize("name", ["neg_cross_entropy", "target_probability", "target_logit"])
def test_pooling_many_outputs_changes_nothing(name):
    full, labels, images, logits = draw(100)
    labels[0] = full[0].argmin()  # a label that is not among the largest
    value = Value(name, labels, full)
    pooled, pool = value.pooled()
    outputs = pool(images, logits)
    assert outputs.shape == (N_ROWS, POOLED_OUTPUTS)
    torch.testing.assert_close(
        pooled(images, outputs), value(images, logits), rtol=1e-13, atol=1e-13
    )


def test_pooled_divergence_is_right_at_the_full_network_and_never_larger_elsewhere():
    full, _, images, logits = draw(100)
    value = Value("neg_kl_divergence", None, full)
    pooled, pool = value.pooled()
    every = torch.arange(N_IMAGES)
    assert pooled(every, pool(every, full)).abs().max() < 1e-12
    # what is pooled can only hide a difference (data processing inequality)
    assert (pooled(images, pool(images, logits)) >= value(images, logits) - 1e-12).all()
