"""The network of a job: made by its factory, filled with its weights."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shapray.config import Model
from shapray.constants.place import put_in_place
from shapray.constants.wrappers import unwrapped
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.outputs import evaluating, read_logits
from shapray.inputs.user_code import call, call_in_words, user_code
from shapray.inputs.weights import State, load_weights, misfits, put_weights, without_prefix

FACTORY = "model.factory"  # the job's key, for messages


@dataclass(frozen=True)
class ReadModel:
    """A network, ready to be scored.

    Attributes:
        network: in eval mode, float32, on the CPU.
        notes: what is not as the user wrote it, in words, a line each.
    """

    network: nn.Module
    notes: tuple[str, ...]


def build_model(
    model: Model, state: State | None = None, example: Tensor | None = None
) -> nn.Module:
    """The network of `read_model`."""
    return read_model(model, state, example).network


def read_model(
    model: Model, state: State | None = None, example: Tensor | None = None
) -> ReadModel:
    """The job's network with its weights, constants in plain layers, logits out.

    The factory runs with a fixed CPU seed, so that a network without a weights file is the same in
    every process.

    Args:
        model: the job's ``model`` section.
        state: weights already read; by default ``model.weights`` is read (null: the factory's own).
        example: (1, channels, height, width); needed where layers take their shape from an image,
            and where logits are to be read from what the network returns.
    Raises:
        JobError: the factory fails, the file cannot be read, the weights do not fit, or what is
            returned cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = call(model.factory, model.kwargs, FACTORY)
        if not isinstance(network, nn.Module):
            raise JobError(
                f"{FACTORY}: {model.factory} returned a {type(network).__name__}, "
                "not a torch.nn.Module"
            )
        network = unwrapped(network)
        hollow = [name for name, tensor in _tensors(network) if tensor.is_meta]
        if hollow:
            raise JobError(
                f"{FACTORY}: {model.factory} returned a network on the meta device, without "
                f"values ({hollow[0]}); it must be made on a real one"
            )
        network = network.to(device="cpu", dtype=torch.float32).eval()
        materialise(network, example, FACTORY)
    wanted = network.state_dict()
    if state is None and model.weights is not None:
        state = load_weights(model.weights, wanted, "model.weights")
    if state is not None:
        state = without_prefix(state, wanted)
        findings = misfits(state, wanted)
        if findings:
            raise JobError(
                f"model.weights: {without_credentials(model.weights or 'the given weights')} "
                f"({len(state)} tensors) do not fit {call_in_words(model.factory, model.kwargs)} "
                f"({len(wanted)} tensors):\n" + "\n".join(f"  {finding}" for finding in findings)
            )
        put_weights(network, state)
    return ReadModel(network, tuple(made_plain(network, example, model.output)))


def made_plain(network: nn.Module, example: Tensor | None, output: str | int | None) -> list[str]:
    """Put a network's constants in place and have it return logits; changed in place.

    Args:
        network: with its weights, in either mode.
        example: (1, channels, height, width) as the network takes it; None: its outputs stay.
        output: see `read_logits`.
    Returns:
        what was done, in words, a line each.
    Raises:
        JobError: what it returns cannot be read.
    """
    with evaluating(network):
        notes = put_in_place(network)
    if example is not None:
        notes += read_logits(network, example, None if output is None else str(output))
    return notes


def materialise(network: nn.Module, example: Tensor | None, key: str) -> None:
    """Pass an image through a network of which layers take their shape from it; others are left
    alone.

    Args:
        network: in eval mode; changed in place.
        example: (1, channels, height, width); None if there is none.
        key: where the network comes from, for messages.
    Raises:
        JobError: there is no image, it does not pass, or it does not reach all of these layers.
    """
    if not _lazy(network):
        return
    remedy = "initialise lazy layers in the factory, by passing an image through"
    if example is None:
        raise JobError(f"{key}: {_lazy(network)[0]} has no shape yet; {remedy}")
    shape = tuple(example.shape)
    with torch.no_grad(), user_code(f"{key}: images of shape {shape} do not pass ({remedy})"):
        network(example)
    if _lazy(network):
        raise JobError(
            f"{key}: {_lazy(network)[0]} has no shape even after an image passed through; {remedy}"
        )


def _lazy(network: nn.Module) -> list[str]:
    return [name for name, tensor in _tensors(network) if is_lazy(tensor)]


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(network.named_parameters(), network.named_buffers())
