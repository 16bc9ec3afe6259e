"""A network's tail, run on batches: on a GPU of few sizes, each recorded and played again.

cuDNN plans anew for every size of a batch that it has not seen, and the kernels of a small tail may
take less time than their launches. So on a GPU a batch is filled up to one of a few sizes, and what
is launched for a size is recorded as a CUDA graph, which a single call starts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from shapray.engine.arithmetic import float32_products

STEPS = 8  # sizes between one power of two and the next: at most an eighth is filled up
MAX_RECORDINGS = 8  # of a tail


class Tail:
    """A tail in a precision.

    Args:
        graph: takes one row per coalition of each input, and may overwrite its inputs.
        dtype: of its floating point inputs.
        rows: most in a batch; a `batch_size`.
        tf32: see `float32_products`.
    """

    def __init__(
        self, graph: fx.GraphModule, dtype: torch.dtype, rows: int, *, tf32: bool = False
    ) -> None:
        self.graph, self.dtype, self.rows, self.tf32 = graph, dtype, rows, tf32
        self.is_long = has_convolution(graph)
        self.recorder = Recorder(self.run)
        self.room: list[Tensor] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Outputs of a batch.

        Args:
            inputs: (n_rows, ...) each, in any floating point precision; they may be overwritten.
        """
        n_rows = len(inputs[0])
        if inputs[0].device.type != "cuda" or not self.is_long or n_rows == 0:
            return self.run(*(self._cast(given) for given in inputs))
        size = batch_size(n_rows)
        if not self.room:
            self.room = [self._room(given) for given in inputs]

        def fill() -> list[Tensor]:
            for place, given in zip(self.room, inputs, strict=True):
                place[:n_rows].copy_(given)
            return [place[:size] for place in self.room]

        # what is in the further rows does not matter: a row's outputs depend on that row alone
        return self.recorder(size, fill)[:n_rows].clone()

    def run(self, *inputs: Tensor) -> Tensor:
        with float32_products(tf32=self.tf32):
            return self.graph(*inputs)

    def _cast(self, given: Tensor) -> Tensor:
        return given.to(self.dtype) if given.is_floating_point() else given

    def _room(self, given: Tensor) -> Tensor:
        """Zeros for the most rows, in the layout of the weights."""
        like = self._cast(given[:1])
        layout = torch.channels_last if given.dim() == 4 else torch.contiguous_format
        return like.new_zeros(self.rows, *given.shape[1:]).to(memory_format=layout)


class Recorder:
    """A function on tensors that stay where they are: run the first time, recorded the second, then
    played; run every time if it waits for the device.

    Args:
        run: of the tensors that `fill` gives, which it may overwrite.
    """

    def __init__(self, run: Callable[..., Tensor]) -> None:
        self.run = run
        self.seen = set[int]()
        self.played: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self.playable = True
        self.pool: Any = None  # memory that all recordings share

    def __call__(self, size: int, fill: Callable[[], list[Tensor]]) -> Tensor:
        """The function's result, which the next call may overwrite.

        Args:
            size: fills of the same size put their tensors at the same place.
        """
        inputs = fill()
        if size in self.seen and self._plays(size, inputs):
            graph, output = self.played[size]
            graph.replay()
            return output
        if size not in self.seen and self.playable:
            self.seen.add(size)
            try:
                return self._without_waiting(inputs)
            except RuntimeError:  # if it is of another kind it comes again
                self.playable = False
                inputs = fill()
        return self.run(*inputs)

    def _without_waiting(self, inputs: list[Tensor]) -> Tensor:
        """Raises RuntimeError where the function waits for the device: no recording could."""
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return self.run(*inputs)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def _plays(self, size: int, inputs: list[Tensor]) -> bool:
        if self.playable and size not in self.played and len(self.played) < MAX_RECORDINGS:
            self._record(size, inputs)
        return size in self.played

    def _record(self, size: int, inputs: list[Tensor]) -> None:
        """On a stream of its own, as recording must be; nothing is computed."""
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph, stream, here = (
            torch.cuda.CUDAGraph(),
            torch.cuda.Stream(),
            torch.cuda.current_stream(),
        )
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                output = self.run(*inputs)
            finally:
                graph.capture_end()
        here.wait_stream(stream)
        self.played[size] = graph, output


def has_convolution(tail: fx.GraphModule) -> bool:
    """Whether a tail has anything to compute that takes long."""
    return any(
        n.op == "call_module" and isinstance(tail.get_submodule(str(n.target)), nn.Conv2d)
        for n in tail.graph.nodes
    )


def batch_size(n_rows: int) -> int:
    """The smallest size of a batch with room for so many rows."""
    step = _step(n_rows)
    return -(-n_rows // step) * step


def largest_batch(n_rows: int) -> int:
    """The largest size of a batch with no more rows."""
    return n_rows - n_rows % _step(n_rows)


def _step(n_rows: int) -> int:
    return max(1, (1 << (n_rows - 1).bit_length()) // (2 * STEPS))
