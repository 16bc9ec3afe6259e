"""A step that gives an activation other dimensions, whatever is left of its channels."""

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

_RESHAPES = ("reshape", "view", torch.reshape)
_ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod)


class Reshaped(nn.Module):
    """An activation and its sizes after, one of which may be -1, as a layer."""

    def forward(self, x: Tensor, *sizes: int) -> Tensor:
        return x.reshape(sizes)


def free_sizes(graph: fx.Graph, channels: Mapping[fx.Node, list[int]]) -> dict[fx.Node, list[Any]]:
    """Where a forward says how many channels there are, by another activation's or by parts of
    their number, while one size can be left open.

    Args:
        channels: the dimensions along which activations have channels.
    Returns:
        node that reshapes -> what it reads and its sizes, -1 among them.
    """
    shapes: dict[Any, Any] = {}  # a node that is a shape -> of what
    of_channels = set[Any]()
    found: dict[fx.Node, list[Any]] = {}
    for node in graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.args[1:] == ("shape",) or (node.target == "size" and len(node.args) == 1):
            shapes[node] = source
        elif node.target == "size" or (node.target is operator.getitem and source in shapes):
            of_what = shapes.get(source, source)
            if node.args[1] in channels.get(of_what, ()):
                of_channels.add(node)
        elif node.target in _ARITHMETIC and not of_channels.isdisjoint(node.args):
            of_channels.add(node)
        elif node.target in _RESHAPES and not node.kwargs:
            sizes = node.args[1:] if len(node.args) > 2 else node.args[1]
            if isinstance(sizes, list | tuple) and -1 not in sizes:
                places = [i for i, size in enumerate(sizes) if size in of_channels]
                if len(places) == 1:
                    found[node] = [source, *sizes]
                    found[node][places[0] + 1] = -1
    return found
