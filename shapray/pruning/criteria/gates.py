"""Derivatives of the loss with respect to gates: factors of 1 on units.

A gate of 0 on what the consumers read removes the unit. The derivative at 1 is the sum of
activation times gradient over the unit's channels, positions and consumers, so one backward pass
has it for all units of all groups, and for every image alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.func import functional_call

from shapray.network.channel_dimension import channel_dimension
from shapray.network.consumers import Reader, along, intercept, weigh
from shapray.network.group import Channels
from shapray.pruning.criteria.inputs import Inputs


@dataclass(frozen=True)
class Gate:
    """A factor for each of `n_units`: on what `readers` read, on what `writers` put out, on what
    they count in `norms` over channels."""

    n_units: int
    readers: tuple[Channels, ...] = ()
    writers: tuple[Channels, ...] = ()
    norms: tuple[Channels, ...] = ()


def loss_slopes(inputs: Inputs, gates: Sequence[Gate]) -> Iterator[list[Tensor]]:
    """Derivatives of every image's cross-entropy, a batch of images at a time.

    Yields:
        for each gate, (n_images, n_units) float64 on the CPU.
    Raises:
        ValueError: none of the network's outputs has a derivative.
    """
    # Detached, so that nothing is kept for gradients of weights, and none is left behind.
    weights = {name: weight.detach() for name, weight in inputs.model.named_parameters()}
    for images, targets in zip(inputs.batches(), inputs.targets.split(inputs.batch), strict=True):
        factors = [
            torch.ones(len(images), gate.n_units, device=inputs.device, requires_grad=True)
            for gate in gates
        ]
        # A network may overwrite what a derivative needs, such as the input of an earlier layer.
        with torch.enable_grad(), allow_mutation_on_saved_tensors():
            with gated(inputs.model, list(zip(gates, factors, strict=True))):
                logits = functional_call(inputs.model, weights, (images,))
            if not logits.requires_grad:
                raise ValueError(
                    "the network's outputs have no derivatives, which this criterion needs: is "
                    "its forward under torch.no_grad, or does it detach what it computes?"
                )
            loss = nn.functional.cross_entropy(logits.double(), targets, reduction="sum")
            slopes = torch.autograd.grad(loss, factors, allow_unused=True, materialize_grads=True)
        yield [slope.double().cpu() for slope in slopes]


def check_slopes(inputs: Inputs) -> None:
    """Raise as `loss_slopes` does for a network without any."""
    first = inputs.groups[0]
    next(loss_slopes(inputs, [Gate(first.n_units, readers=first.consumers)]))


@contextmanager
def gated(model: nn.Module, factors: Sequence[tuple[Gate, Tensor]]) -> Iterator[None]:
    """Within the context, units are multiplied by their gates' factors.

    Args:
        factors: gates, and for each (n_images, n_units) or (1, n_units).
    """
    with ExitStack() as stack:
        readers = [(c, _scaling(c, factor)) for gate, factor in factors for c in gate.readers]
        stack.enter_context(intercept(model, readers))
        norms = [(n, _weighing(n, factor)) for gate, factor in factors for n in gate.norms]
        stack.enter_context(weigh(model, norms))
        for gate, factor in factors:
            for writer in gate.writers:
                module = model.get_submodule(writer.module)
                scale = _scaling_output(_scaling(writer, factor))
                stack.callback(module.register_forward_hook(scale).remove)
        yield


def _scaling(channels: Channels, factor: Tensor) -> Reader:
    units = torch.tensor(channels.unit_of_channel, device=factor.device)

    def scale(read: Tensor, channel: int) -> Tensor:
        of_channel = nn.functional.pad(factor, (0, 1), value=1.0)[:, units]  # unit -1 is left alone
        return read * along(of_channel, channel, read.ndim)

    return scale


def _weighing(norm: Channels, factor: Tensor) -> Reader:
    scaled = _scaling(norm, factor)
    return lambda read, channel: scaled(torch.ones_like(read), channel)


def _scaling_output(scaled: Reader) -> Any:
    def scale(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return scaled(output, channel_dimension(module, output.shape))

    return scale
