"""Heads that only training uses, and that a cut leaves behind.

An auxiliary classifier (GoogLeNet's, Inception's) reads a stream of the network in training mode
alone. No image reaches it in eval mode, so a cut, which follows the images, leaves it as it is, and
the network that still evaluates fails as soon as it is trained.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shapray.text import one_line

Settings = Mapping[str, Literal[False] | None]
"""Dotted attribute of a network -> None for a module that is dropped, False for a flag that asked
for it."""


@dataclass(frozen=True)
class Dropped:
    """What was set so that a cut network runs in training mode."""

    settings: Settings
    reason: str | None
    """Why it does not, although the whole network does; then nothing is set."""

    @property
    def modules(self) -> list[str]:
        return [name for name, value in self.settings.items() if value is None]

    def __str__(self) -> str:
        """For the user; empty if there is nothing to say."""
        if self.reason:
            return f"the pruned network {self.reason}"
        them = "it; it is" if len(self.modules) == 1 else "them; they are"
        return f"{', '.join(self.modules)}: no image reaches {them} dropped" if self.modules else ""


def drop_unreached(pruned: nn.Module, model: nn.Module, example: Tensor) -> Dropped:
    """Drop the modules that no image reaches in eval mode and that fail in training mode.

    A module is dropped as torchvision leaves out its auxiliary heads: None is in its place. If none
    of its kind is left and the outputs are then no longer a tensor, or the forward fails, a flag of
    the module that held it (``aux_logits``) is turned off, if one helps. The outputs in eval mode
    stay what they are.

    Args:
        pruned: what `prune_model` made of `model`; changed in place.
        example: one image, (1, C, H, W), of two of which training batches are made.
    Returns:
        nothing if `pruned` can be trained as it is, or `model` cannot either.
    """
    if _run(pruned, example, training=True).error is None:
        return Dropped({}, None)
    if _run(model, example, training=True).error is not None:
        return Dropped({}, None)
    evaluated = _run(pruned, example, training=False)
    cut, settings = copy.deepcopy(pruned), dict[str, Literal[False] | None]()
    trained = _run(cut, example, training=True)
    while idle := [name for name in trained.failed_in if name not in evaluated.called]:
        settings[idle[0]] = None
        apply_settings(cut, {idle[0]: None})
        trained = _run(cut, example, training=True)
    others_left = trained.called - evaluated.called
    if trained.error or not (others_left or isinstance(trained.output, Tensor)):
        for flag in _flags(cut, settings):
            flagless = copy.deepcopy(cut)
            apply_settings(flagless, {flag: False})
            found = _run(flagless, example, training=True)
            if isinstance(found.output, Tensor) and _same(flagless, evaluated, example):
                cut, trained = flagless, found
                settings[flag] = False
                break
    if trained.error is not None or not _same(cut, evaluated, example):
        return Dropped({}, _in_words(list(settings), trained.error))
    apply_settings(pruned, settings)
    return Dropped(settings, None)


def apply_settings(network: nn.Module, settings: Settings) -> None:
    """Set attributes of a network that it has, in place.

    Raises:
        ValueError: it has no such attribute.
    """
    for name, value in settings.items():
        owner, _, attribute = name.rpartition(".")
        try:
            holder = network.get_submodule(owner)
            getattr(holder, attribute)
        except AttributeError as error:
            raise ValueError(f"the network has no '{name}' to drop") from error
        setattr(holder, attribute, value)


@dataclass(frozen=True)
class _Pass:
    output: Any  # None if it fails
    error: Exception | None
    called: set[str]
    failed_in: list[str]  # modules at work when it failed, the outermost first


def _run(network: nn.Module, example: Tensor, training: bool) -> _Pass:
    """One forward pass of a copy, on two images, as a BatchNorm trains on no fewer."""
    copied = copy.deepcopy(network).train(training)
    called: set[str] = set()
    output, failure = None, None
    with _at_work(copied, called) as stack, _own_randomness(example), torch.no_grad():
        try:
            output = copied(example.repeat(2, 1, 1, 1))
        except Exception as error:  # the user's code
            failure = error
    return _Pass(output, failure, called, stack if failure else [])


@contextlib.contextmanager
def _at_work(network: nn.Module, called: set[str]) -> Iterator[list[str]]:
    """The names of the modules whose forward has begun and not ended; `called` gets all."""
    stack: list[str] = []
    handles = []
    for name, module in network.named_modules():

        def enter(_: nn.Module, __: Any, name: str = name) -> None:
            called.add(name)
            stack.append(name)

        def leave(_: nn.Module, __: Any, ___: Any, name: str = name) -> None:
            while stack.pop() != name:  # one that failed, and was caught further up
                pass

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _own_randomness(example: Tensor) -> Iterator[None]:
    """A dropout's draws are nobody else's."""
    devices = [example.device] if example.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def _flags(network: nn.Module, settings: Settings) -> list[str]:
    """Attributes that are True, of the modules that held what was dropped."""
    owners = dict.fromkeys(name.rpartition(".")[0] for name in settings)
    return [
        f"{owner}.{attribute}".removeprefix(".")
        for owner in owners
        for attribute, value in vars(network.get_submodule(owner)).items()
        if value is True and attribute != "training"
    ]


def _same(network: nn.Module, evaluated: _Pass, example: Tensor) -> bool:
    output = _run(network, example, training=False).output
    return isinstance(output, Tensor) and torch.equal(output, evaluated.output)


def _in_words(unreached: list[str], error: Exception | None) -> str:
    if not unreached:
        assert error is not None
        return f"cannot be trained: in training mode its forward fails: {one_line(error)}"
    names = ", ".join(unreached)
    return (
        f"cannot be trained: in training mode its forward calls {names}, which no image reaches in "
        "eval mode, so that the cut could not be followed there"
    )
