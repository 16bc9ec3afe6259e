"""How many multiply-adds a network does, counted operation by operation as it runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from shapray.network.watching import Watching


class MultiplyAdds(Watching):
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

    def ran(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        formula = flop_registry.get(operation._overloadpacket)
        if formula is None and operation is not torch.ops.prim.device.default:
            result = self.decomposed(operation, args, kwargs)  # what may be counted
            if result is not NotImplemented:
                return result
        result = operation(*args, **kwargs)
        if formula is not None:
            self._flops += formula(*args, **kwargs, out_val=result)
        return result
