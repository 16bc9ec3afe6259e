"""How fast a network is on this machine, alone or beside others."""

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARM_UP = 2  # passes that are not counted
LONGEST = 3.0  # seconds of a pass
FEWEST = 5  # passes that are, however long they take


@dataclass(frozen=True)
class Latency:
    """Forward passes of a batch, timed one by one.

    Attributes:
        batch: images of a pass.
        seconds: of every pass, in their order.
        threads: of PyTorch's operations on the processor.
        device: its kind and its name: ``cpu (AMD EPYC)``.
    """

    batch: int
    seconds: tuple[float, ...]
    threads: int
    device: str

    @property
    def median(self) -> float:
        """Seconds of a pass."""
        return float(np.median(self.seconds))

    def numbers(self) -> dict[str, Any]:
        """For a report."""
        median, p95 = self.median, float(np.percentile(self.seconds, 95))
        return {
            "batch": self.batch,
            "median_ms": 1000 * median,
            "p95_ms": 1000 * p95,
            "images_per_second": self.batch / median,
            "n_passes": len(self.seconds),
            "threads": self.threads,
            "device": self.device,
        }


def latency(
    network: nn.Module,
    example: Tensor,
    batch: int,
    *,
    seconds: float = 1.0,
    device: str | torch.device = "cpu",
) -> Latency:
    """Time forward passes of one network; arguments as in `compared_latency`."""
    alone = {"": network}
    return compared_latency(alone, example, batch, seconds=seconds, device=device)[""]


def compared_latency(
    networks: Mapping[str, nn.Module],
    example: Tensor,
    batch: int,
    *,
    seconds: float = 1.0,
    device: str | torch.device = "cpu",
) -> dict[str, Latency]:
    """Time forward passes of several networks in turns.

    What else the machine does meanwhile hits all of them alike, so the ratios of their medians are
    steadier than the medians themselves.

    Args:
        networks: in eval mode, on `device`, each in its own memory format.
        example: one image, (1, C, H, W), on any device, of the type that the networks take.
        batch: images of a pass, all of them the example.
        seconds: for each network on average; exceeded where `FEWEST` passes take longer.
        device: where passes are waited for.
    """
    assert not any(network.training for network in networks.values())
    assert len(example) == 1, example.shape
    device = torch.device(device)
    images = torch.cat([example.to(device)] * batch)
    for _ in range(WARM_UP):
        for network in networks.values():
            _pass_seconds(network, images)
    spent: dict[str, list[float]] = {name: [] for name in networks}
    n_passes, total = 0, 0.0
    while n_passes < FEWEST or total < seconds * len(networks):
        for name, network in networks.items():
            spent[name].append(_pass_seconds(network, images))
            total += spent[name][-1]
        n_passes += 1
    threads, where = torch.get_num_threads(), device_name(device)
    return {name: Latency(batch, tuple(found), threads, where) for name, found in spent.items()}


def bearable_batch(
    network: nn.Module, example: Tensor, batch: int, device: str | torch.device
) -> int:
    """`batch`, or as many images as a pass of a few seconds takes, by timing a pass of one."""
    image = example.to(device)
    _pass_seconds(network, image)
    return max(1, min(batch, int(LONGEST / _pass_seconds(network, image))))


def device_name(device: torch.device) -> str:
    """``cpu (AMD EPYC)``, ``cuda (NVIDIA H100 80GB HBM3)``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({processor_name()})"


def processor_name() -> str:
    """What the processor calls itself, or its architecture where it does not."""
    fallback = platform.processor() or platform.machine()
    return processor().get("model name", fallback)


def processor() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().split("\n\n")[0].splitlines() if info.exists() else []
    return {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}


def _pass_seconds(network: nn.Module, images: Tensor) -> float:
    with torch.inference_mode():
        own = images.clone()  # a network may write into its input
        _wait(images.device)
        start = time.perf_counter()
        network(own)
        _wait(images.device)
        return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
