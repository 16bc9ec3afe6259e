import itertools
import json
import platform
import time

import pytest
import torch
from torch import nn

from shapray.pruning.latency import FEWEST, WARM_UP, compared_latency, latency, processor_name

EXAMPLE = torch.ones(1, 3, 4, 4)


class Recorder(nn.Module):
    """Notes its passes in a list that several may share."""

    def __init__(self, name: str, passes: list[tuple[str, torch.Tensor]]) -> None:
        super().__init__()
        self.name, self.passes = name, passes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        self.passes.append((self.name, x.clone()))
        return x.mul_(2)  # as an in-place activation at the front would


def test_a_report_says_what_was_timed_and_where():
    found = latency(nn.Conv2d(3, 2, 3).eval(), EXAMPLE, 7, seconds=0)
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["batch"] == 7
    assert numbers["n_passes"] == len(found.seconds) == FEWEST
    assert numbers["threads"] == torch.get_num_threads()
    assert numbers["device"] == f"cpu ({processor_name()})"
    assert 0 < numbers["median_ms"] <= numbers["p95_ms"] <= 1000 * max(found.seconds)
    assert numbers["images_per_second"] == pytest.approx(7000 / numbers["median_ms"])


def test_networks_take_turns_with_the_same_images():
    passes = []
    networks = {name: Recorder(name, passes).eval() for name in ("whole", "cut", "repaired")}
    found = compared_latency(networks, EXAMPLE, 2, seconds=0)
    assert [name for name, _ in passes] == [*networks] * (WARM_UP + FEWEST)
    assert all(images.equal(torch.ones(2, 3, 4, 4)) for _, images in passes)
    assert {name: len(of_one.seconds) for name, of_one in found.items()} == dict.fromkeys(
        networks, FEWEST
    )


def test_passes_fill_the_seconds_of_each_network(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)  # every pass takes 1 s
    networks = {name: Recorder(name, []).eval() for name in ("whole", "cut")}
    found = compared_latency(networks, EXAMPLE, 4, seconds=8)
    assert [len(networks[name].passes) for name in networks] == [WARM_UP + 8] * 2
    for of_one in found.values():
        numbers = of_one.numbers()
        assert numbers["n_passes"] == 8
        assert (numbers["median_ms"], numbers["p95_ms"]) == (1000, 1000)
        assert numbers["images_per_second"] == 4


def test_the_caller_is_left_as_it_was():
    network, example, threads = nn.Conv2d(3, 2, 3).eval(), EXAMPLE.clone(), torch.get_num_threads()
    latency(network, example, 2, seconds=0)
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not network.training
    assert network(example).requires_grad
    assert example.equal(EXAMPLE)


def test_a_processor_without_a_name_goes_by_its_architecture(monkeypatch):
    monkeypatch.setattr("shapray.pruning.latency.processor", dict)
    assert processor_name() in {platform.processor(), platform.machine()}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu():
    network = nn.Conv2d(3, 2, 3).eval().to("cuda")
    numbers = latency(network, EXAMPLE, 4, seconds=0, device="cuda").numbers()
    assert numbers["device"] == f"cuda ({torch.cuda.get_device_name()})"
