"""The network of a job: made by its factory, filled with its weights."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shapray.config import Model
from shapray.credentials import without_credentials
from shapray.errors import JobError
from shapray.inputs.user_code import call, call_in_words, user_code
from shapray.inputs.weights import State, load_weights, misfits, without_prefix

FACTORY = "model.factory"  # the job's key, for messages


def build_model(
    model: Model, state: State | None = None, example: Tensor | None = None
) -> nn.Module:
    """The job's network with its weights: eval mode, float32, on the CPU.

    The factory runs with a fixed CPU seed, so that a network without a weights file is the same in
    every process.

    Args:
        model: the job's ``model`` section.
        state: weights already read; by default ``model.weights`` is read (null: the factory's own).
        example: (1, channels, height, width); needed where layers take their shape from an image.
    Raises:
        JobError: the factory fails, the file cannot be read, or the weights do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        network = call(model.factory, model.kwargs, FACTORY)
        if not isinstance(network, nn.Module):
            raise JobError(
                f"{FACTORY}: {model.factory} returned a {type(network).__name__}, "
                "not a torch.nn.Module"
            )
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
        network.load_state_dict(state, strict=False)
    return network


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
