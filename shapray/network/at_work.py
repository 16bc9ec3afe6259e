"""Which module a forward pass was in when it failed."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def at_work(model: nn.Module) -> Iterator[Callable[[], tuple[str, nn.Module]]]:
    """Tells which module was innermost when an exception left the forward pass: its name and
    itself."""
    names = {module: name for name, module in model.named_modules()}
    stack: list[nn.Module] = []

    def enter(module: nn.Module, _: Any) -> None:
        stack.append(module)

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        while stack.pop() is not module:  # one that failed, and was caught further up
            pass

    handles = []
    for module in names:
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield lambda: (names[stack[-1]], stack[-1]) if stack else ("", model)
    finally:
        for handle in handles:
            handle.remove()
