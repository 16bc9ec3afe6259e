"""Logits (images, classes) out of what a network returns: one of several outputs, or one logit.

The network stays the user's own module, with its own parameters' names: while it is scored and cut
it is of a subclass of its class, whose forward reads its outputs; `own` takes it back.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shapray.errors import JobError
from shapray.text import some

OUTPUT = "model.output"  # the job's key, for messages
LOGITS = "logits"  # the output that is taken where none is named
_SHAPING = ("Div", "Cat", "Neg", "View", "Reshape", "UnsafeView", "Squeeze")  # of one logit


@dataclass(frozen=True)
class Reading:
    """How a network's outputs are read.

    Attributes:
        of_class: the network's own class.
        output: name or place of the one that holds the logits; None: the network returns them.
        one_logit: it is z, the logit of label 1 against label 0, and two are made of it: -z/2 and
            z/2. Their softmax is z's sigmoid, so that their cross-entropy is z's binary one, their
            largest says z's sign and their margin is z.
    """

    of_class: type[nn.Module]
    output: str | None
    one_logit: bool


def read_logits(network: nn.Module, image: Tensor, output: str | None = None) -> list[str]:
    """Have a network return logits, (images, classes); one that does so already is left alone.

    Args:
        network: changed in place: of another class, until `own` takes it back.
        image: (1, channels, height, width). If it does not pass, nothing is done.
        output: name or place of the output that holds the logits, if the network has several; by
            default `LOGITS`, or the only one there is.
    Returns:
        what is read, in words, a line each.
    Raises:
        JobError: there is no such output, none or several could be meant, or it is a probability.
    """
    with evaluating(network):
        found = _outputs(network, torch.cat([image, image]))
        if found is None or isinstance(network, torch.jit.ScriptModule):
            return []
        said, taken = list[str](), None
        if isinstance(found, Tensor):
            if output is not None:
                raise JobError(
                    f"{OUTPUT}: {output}, and the network returns one tensor, of shape "
                    f"{tuple(found.shape)}; leave the key out"
                )
        else:
            taken, choices = _chosen(found, output), _choices(found)
            said.append(
                f"of the network's outputs, {some(list(choices))} ({type(found).__name__}), "
                f"{taken} is read"
            )
            found = choices[taken]
        one_logit = found.shape in ((2, 1), (2,)) and found.is_floating_point()
        if one_logit:
            said.append(
                "the network has one output, the logit z of label 1 against label 0; it is read as "
                "the logits -z/2 and z/2"
            )
        if said:
            _read(network, Reading(type(network), taken, one_logit))
            _check(network, image)
        return said


def own(network: nn.Module) -> nn.Module:
    """The network as the user made it, with its own outputs; changed in place."""
    reading = reading_of(network)
    if reading is not None:
        network.__class__ = reading.of_class
    return network


def with_one_logit(network: nn.Module) -> nn.Module:
    """The network without a second logit made of its only one, as a program is saved; changed in
    place."""
    reading = reading_of(network)
    if reading is not None and reading.one_logit:
        own(network)
        if reading.output is not None:
            _read(network, dataclasses.replace(reading, one_logit=False))
    return network


def reading_of(network: nn.Module) -> Reading | None:
    """None for a network that returns logits by itself."""
    return getattr(type(network), "_reading", None)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In eval mode for a while; then every module is in its own again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _outputs(network: nn.Module, images: Tensor) -> Any:
    """None where the network fails; whoever probes it will say how."""
    try:
        with torch.no_grad():
            return network(images.clone())
    except Exception:  # the user's code: it may raise anything
        return None


def _by_name(outputs: Any) -> dict[str, Any]:
    """Several outputs, by name or place."""
    named: Mapping[Any, Any] = {}
    if isinstance(outputs, Mapping):
        named = outputs
    elif dataclasses.is_dataclass(outputs):
        named = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    elif hasattr(outputs, "_asdict"):  # a named tuple
        named = outputs._asdict()
    elif isinstance(outputs, tuple | list):
        named = dict(enumerate(outputs))
    return {str(name): value for name, value in named.items()}


def _choices(outputs: Any) -> dict[str, Tensor]:
    return {name: found for name, found in _by_name(outputs).items() if isinstance(found, Tensor)}


def _chosen(outputs: Any, output: str | None) -> str:
    choices = _choices(outputs)
    kind = type(outputs).__name__
    held = some([f"{name} {tuple(tensor.shape[1:])}" for name, tensor in choices.items()])
    if not choices:
        raise JobError(
            f"model.factory: the network returns a {kind} without tensors; logits are needed, of "
            "shape (images, classes)"
        )
    if output is not None:
        if output not in choices:
            raise JobError(f"{OUTPUT}: the network has no output '{output}'; its {kind} has {held}")
        return output
    if LOGITS in choices:
        return LOGITS
    if len(choices) > 1:
        raise JobError(
            f"{OUTPUT}: the network returns a {kind} of {held} (shapes per image); name the one "
            "that holds the logits"
        )
    return next(iter(choices))


def _check(network: nn.Module, image: Tensor) -> None:
    """The network's forward is that of its class, and no sigmoid ends it.

    Raises:
        JobError: otherwise.
    """
    reading = reading_of(network)
    assert reading is not None
    if not isinstance(_outputs(network, image), Tensor):
        raise JobError(
            f"model.factory: the network's outputs cannot be read: its forward is not that of "
            f"its class {reading.of_class.__name__}; let it return the logits alone"
        )
    if reading.one_logit and _ends_in_a_sigmoid(network, image):
        raise JobError(
            "model.factory: the network ends in a sigmoid: its output is a probability, not a "
            "logit; take it off"
        )


def _ends_in_a_sigmoid(network: nn.Module, image: Tensor) -> bool:
    """As autograd knows the operation before those that give an output its shape."""
    try:
        with torch.enable_grad():
            last = network(image.detach().requires_grad_().clone()).grad_fn
    except Exception:  # a forward that cannot have gradients
        return False
    while last is not None and last.name().startswith(_SHAPING):
        last = last.next_functions[0][0]
    return last is not None and last.name().startswith("Sigmoid")


def _read(network: nn.Module, reading: Reading) -> None:
    if isinstance(network, torch.fx.GraphModule):
        raise JobError(
            "model.factory: the network is a torch.fx graph that does not return logits of shape "
            "(images, classes) alone; let it"
        )
    network.__class__ = _class_that_reads(reading)


@functools.cache
def _class_that_reads(reading: Reading) -> type[nn.Module]:
    of_class = reading.of_class

    def forward(network: nn.Module, images: Tensor) -> Tensor:
        outputs = of_class.forward(network, images)
        if reading.output is not None:
            outputs = _by_name(outputs)[reading.output]
        if reading.one_logit:
            z = outputs.reshape(-1, 1)
            outputs = torch.cat([-z, z], 1) / 2
        return outputs

    def reduce(network: nn.Module, protocol: Any) -> Any:
        return _again, (reading,), network.__getstate__()

    content = {"forward": forward, "__reduce_ex__": reduce, "_reading": reading}
    content |= {"__module__": of_class.__module__, "__qualname__": of_class.__qualname__}
    return type(of_class.__name__, (of_class,), content)


def _again(reading: Reading) -> nn.Module:
    """An empty one, for pickle and copy to fill."""
    made = _class_that_reads(reading)
    network: nn.Module = object.__new__(made)
    return network
