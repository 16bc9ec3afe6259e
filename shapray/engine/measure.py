"""The shapes of a folded network's values, and the multiply-adds that they take."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp

from shapray.network.multiply_adds import MultiplyAdds

TRACE_IMAGES = 3  # batch size while tracing shapes; tells per-image tensors from others


class _Measure(ShapeProp):
    """Writes down the shape of every node's value, and the multiply-adds that it takes."""

    def run_node(self, n: fx.Node) -> Any:
        with MultiplyAdds() as counted:
            value = super().run_node(n)
        n.meta["macs"] = counted.total // TRACE_IMAGES
        return value


def measure(folded: fx.GraphModule, example: Tensor) -> None:
    """Once for all groups: what is written down stays with the network's nodes."""
    shape = (TRACE_IMAGES, *example.shape[1:])
    if folded.meta.get("measured") == shape:
        return
    with torch.inference_mode():
        _Measure(folded).propagate(example.expand(shape))
    folded.meta["measured"] = shape


def multiply_adds(part: fx.GraphModule) -> int:
    """Of a part of a measured network, for one image."""
    return sum(node.meta.get("macs", 0) for node in part.graph.nodes if node.op.startswith("call_"))


def numbers(nodes: Iterable[fx.Node]) -> int:
    """That the values of a measured network's nodes have for one image."""
    return sum(node.meta["tensor_meta"].shape.numel() // TRACE_IMAGES for node in nodes)
