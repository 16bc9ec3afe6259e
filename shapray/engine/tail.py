"""A network's tail, run on batches as the device has it best."""

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from shapray.engine.arithmetic import float32_products
from shapray.engine.entries import ADDITIONS
from shapray.engine.fuse import fused
from shapray.network.channel_dimension import channel_dimension

STEPS = 8  # sizes between one power of two and the next: at most an eighth is filled up


class Tail:
    """A tail in a precision.

    On a GPU a batch is filled up to one of few sizes, as cuDNN plans anew for every size it has not
    seen; and a convolution adds and activates as it writes where there is a kernel for that.
    float32 lies there channel after channel: cuDNN has few kernels for float32 in another layout.

    Args:
        graph: takes one row per coalition of each input, and may overwrite its inputs; its weights'
            layout may change.
        dtype: of its floating point inputs.
        device: where it runs.
        tf32: see `float32_products`.
    """

    def __init__(
        self, graph: fx.GraphModule, dtype: torch.dtype, device: torch.device, *, tf32: bool
    ) -> None:
        self.graph, self.dtype, self.tf32 = graph, dtype, tf32
        self.on_gpu = device.type == "cuda" and has_convolution(graph)
        self.are_maps = are_maps(graph)
        self.layout, self.fused = torch.channels_last, None
        if self.on_gpu and dtype == torch.float32 and not tf32:
            self.layout = torch.contiguous_format
            graph.to(memory_format=self.layout)
        elif self.on_gpu:
            self.fused = fused(graph)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Outputs of a batch.

        Args:
            inputs: (n_rows, ...) each, in any floating point precision; they may be overwritten.
        """
        n_rows = len(inputs[0])

        def ready() -> list[Tensor]:
            cast = [i.to(self.dtype) if i.is_floating_point() else i for i in inputs]
            if not self.on_gpu or not n_rows:
                return cast
            return [self._filled(*given) for given in zip(cast, self.are_maps, strict=True)]

        with float32_products(tf32=self.tf32):
            if self.fused is not None:
                try:
                    return self.fused(*ready())[:n_rows]
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # this GPU has no such kernel; anything else comes again
                    self.fused = None
            return self.graph(*ready())[:n_rows]

    def _filled(self, given: Tensor, is_map: bool) -> Tensor:
        """With rows of zeros at the end: a row's outputs depend on that row alone."""
        if is_map:
            given = given.contiguous(memory_format=self.layout)
        missing = batch_size(len(given)) - len(given)
        if not missing:
            return given
        return nn.functional.pad(given, (0, 0) * (given.dim() - 1) + (0, missing))


def are_maps(tail: fx.GraphModule) -> list[bool]:
    """Per input of a tail, whether it is (n, channels, height, width), not what layers read along
    its last dimension: (n, height, width, channels)."""
    inputs = [n for n in tail.graph.nodes if n.op == "placeholder"]
    return [_n_dims(node) == 4 and not _is_read_along_the_last(tail, node) for node in inputs]


def _n_dims(node: fx.Node) -> int:
    return len(getattr(node.meta.get("tensor_meta"), "shape", ()))


def _is_read_along_the_last(tail: fx.GraphModule, node: fx.Node) -> bool:
    """Whether such a layer reads a value, masked or with others added to it."""
    shape = node.meta["tensor_meta"].shape
    for user in node.users:
        if user.op == "call_module":
            layer = tail.get_submodule(str(user.target))
            is_wanted = isinstance(layer, nn.Linear | nn.LayerNorm)
            if is_wanted and channel_dimension(layer, shape) == len(shape) - 1:
                return True
        elif user.target in (*ADDITIONS, torch.mul) and _is_read_along_the_last(tail, user):
            return True
    return False


def has_convolution(tail: fx.GraphModule) -> bool:
    """Whether a tail has anything to compute that takes long."""
    return any(
        n.op == "call_module" and isinstance(tail.get_submodule(str(n.target)), _ConvNd)
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
