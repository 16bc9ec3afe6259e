"""How many multiply-adds a network does, counted operation by operation as it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


class MultiplyAdds(TorchDispatchMode):
    """Counts those of convolutions and matrix products within its context, by PyTorch's own
    formulas; biases are not counted.

    PyTorch's own counter gives the same numbers, but its first use in a process imports the
    compiler, which takes seconds, in every worker.

    Attributes:
        total: so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self._flops = 0

    @property
    def total(self) -> int:
        return self._flops // 2

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What would keep the compiler off this mode must import it first."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # what it is made of may be counted
                result = func.decompose(*args, **given)
            if result is not NotImplemented:
                return result
        result = func(*args, **given)
        if formula is not None:
            self._flops += formula(*args, **given, out_val=result)
        return result
