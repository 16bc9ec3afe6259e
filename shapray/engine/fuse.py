"""Convolutions that add and activate as they write: on a GPU one kernel instead of up to four."""

import copy
from typing import Any

import torch
from torch import fx, nn

from shapray.engine.entries import ADDITIONS, is_plain


def fused(tail: fx.GraphModule) -> fx.GraphModule | None:
    """The same tail with cuDNN's kernels for `relu(conv(x))` and `relu(conv(x) + y)`.

    In bfloat16 the sum is rounded once instead of three times.

    Args:
        tail: from `split.split`, its BatchNorms folded; left as it is.
    Returns:
        None where there is nothing to fuse.
    """
    tail = fx.GraphModule(tail, copy.deepcopy(tail.graph))  # of the same modules
    activations = [n for n in tail.graph.nodes if n.target is torch.relu_ and _fuse(tail, n)]
    for node in activations:
        (before,) = node.all_input_nodes
        for gone in (node, before, *before.all_input_nodes):
            if not gone.users:
                tail.graph.erase_node(gone)
    tail.recompile()
    return tail if activations else None


def _fuse(tail: fx.GraphModule, node: fx.Node) -> bool:
    """Put a kernel in the place of an activation and what leads there, if one does all of it."""
    (before,) = node.all_input_nodes
    conv, other = before, None
    if before.target in ADDITIONS and not before.kwargs and len(before.all_input_nodes) == 2:
        conv, other = before.all_input_nodes
        if not _is_fusible(tail, conv):
            conv, other = other, conv
        if len(before.users) > 1 or not _alike(before, other):
            return False
    if not _is_fusible(tail, conv):
        return False
    module = tail.get_submodule(str(conv.target))
    assert isinstance(module, nn.Conv2d)
    with tail.graph.inserting_before(node):
        weight = tail.graph.get_attr(f"{conv.target}.weight")
        bias = None if module.bias is None else tail.graph.get_attr(f"{conv.target}.bias")
        how: tuple[Any, ...] = bias, module.stride, module.padding, module.dilation, module.groups
        new = tail.graph.call_function(torch.cudnn_convolution_relu, (conv.args[0], weight, *how))
        if other is not None:
            new.target = torch.cudnn_convolution_add_relu
            new.args = (conv.args[0], weight, other, 1.0, *how)
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    return True


def _is_fusible(tail: fx.GraphModule, node: fx.Node) -> bool:
    if node.op != "call_module" or len(node.users) > 1:
        return False
    module = tail.get_submodule(str(node.target))
    # PyTorch's own kernels are better for convolutions in groups
    return isinstance(module, nn.Conv2d) and module.groups == 1 and is_plain(module)


def _alike(total: fx.Node, other: fx.Node) -> bool:
    """What is added has the shape of the sum."""
    shapes = [getattr(n.meta.get("tensor_meta"), "shape", None) for n in (total, other)]
    return shapes[0] is not None and shapes[0] == shapes[1]
