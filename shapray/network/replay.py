"""What layers make of an image, kept for passes that differ from one layer on."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Replay:
    """A network and what its convolutions and linear layers put out for an image.

    Attributes:
        model: in eval mode, the same outputs each time.
        image: (1, C, H, W), on the model's device.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.image = model, image
        calls: dict[nn.Module, list[Tensor]] = {}

        def keep(module: nn.Module, _: Any, output: Tensor) -> None:
            calls.setdefault(module, []).append(output.clone())  # it may be changed in place

        handles = [
            module.register_forward_hook(keep)
            for module in model.modules()
            if isinstance(module, nn.Conv2d | nn.Linear) and _is_bare(module)
        ]
        try:
            with torch.no_grad():
                model(image.clone())
        finally:
            for handle in handles:
                handle.remove()
        self._outputs = {module: found[0] for module, found in calls.items() if len(found) == 1}

    @contextmanager
    def until(self, layers: Iterable[nn.Module] = ()) -> Iterator[None]:
        """Within the context, a pass of the image, through the network or a part of it that begins
        with it, computes none of these outputs again before one of some layers is called: what runs
        earlier is what it always is. The network is for nothing else meanwhile."""
        reached = False

        def stop(*_: Any) -> None:
            nonlocal reached
            reached = True

        def again(output: Tensor, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda *args, **kwargs: forward(*args, **kwargs) if reached else output.clone()

        handles = [layer.register_forward_pre_hook(stop) for layer in layers]
        for module, output in self._outputs.items():
            module.forward = again(output, module.forward)
        try:
            yield
        finally:
            for module in self._outputs:
                del module.forward
            for handle in handles:
                handle.remove()


def _is_bare(module: nn.Module) -> bool:
    """Whether a layer's forward is all that it does: no hook of the user's sees or changes what it
    puts out, and no layer is inside of it."""
    return (
        "forward" not in vars(module)
        and not module._forward_hooks
        and next(module.children(), None) is None
    )
