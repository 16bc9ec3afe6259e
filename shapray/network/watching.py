"""What looks at every operation of a forward pass as it runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode


class Watching(TorchDispatchMode):
    """Within its context every operation goes through `ran`."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """What would keep the compiler off this mode must import it first, which takes seconds, in
        every worker."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.ran(func, args, dict(kwargs or {}))

    def ran(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run an operation, an ATen overload, and return what it does."""
        raise NotImplementedError

    def decomposed(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What an operation returns, run as those that it is made of; NotImplemented if it is made
        of none."""
        with self:
            return operation.decompose(*args, **kwargs)
