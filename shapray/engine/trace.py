"""A network traced by torch.fx, its BatchNorms folded in: a graph that is quick to run in parts."""

import copy
import operator
import warnings

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse

from shapray.network.check import disagreement
from shapray.network.tracing import traced

_WITHOUT_ASSIGNMENT = {  # x += y and its like change x
    getattr(operator, f"i{name}"): getattr(operator, name)
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul")
}


def fold(model: nn.Module, example: Tensor) -> nn.Module:
    """The network as a torch.fx graph with its BatchNorms folded into the convolutions.

    Args:
        model: any network; left as it is.
        example: (1, channels, height, width).
    Returns:
        an fx.GraphModule in channels-last layout; or a plain copy, after a warning, if the network
        cannot be traced.
    """
    model = copy.deepcopy(model).eval()
    try:
        whole = traced(model, example)
        norms = _norms(whole)
        folded = fuse(whole, no_trace=True)
        assert isinstance(folded, fx.GraphModule)
        folded.meta["norms"] = norms
        _erase_unread(folded)
        _make_out_of_place(folded)
        for parameter in folded.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        folded.eval()
        with torch.inference_mode():
            expected, found = model(example.clone()), folded(example)
        if difference := disagreement(found, expected):
            raise ValueError(f"the traced network and the network {difference}")
    except Exception as error:  # tracing runs the user's forward: it may raise anything
        warnings.warn(
            f"torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}); "
            "every coalition runs the whole network, which is slower",
            stacklevel=2,
        )
        return model
    return folded


def norms_folded_into(folded: fx.GraphModule) -> dict[str, str]:
    """Layer -> the BatchNorm that `fold` has made a part of it."""
    still_there = {str(node.target) for node in folded.graph.nodes if node.op == "call_module"}
    norms: dict[str, str] = folded.meta.get("norms", {})
    return {layer: norm for layer, norm in norms.items() if norm not in still_there}


def _norms(whole: fx.GraphModule) -> dict[str, str]:
    """Layer -> the BatchNorm that reads it."""
    found = {}
    for node in whole.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if (
            isinstance(source, fx.Node)
            and source.op == "call_module"
            and isinstance(whole.get_submodule(str(node.target)), nn.BatchNorm2d | nn.BatchNorm1d)
        ):
            found[str(source.target)] = str(node.target)
    return found


def _erase_unread(module: fx.GraphModule) -> None:
    """What nobody reads, a question about a shape or an output that is not asked for, is not run.
    What may change its input in place stays."""
    for node in reversed(module.graph.nodes):
        is_step = node.op not in ("output", "placeholder")
        if is_step and not node.users and not _may_change_its_input(module, node):
            module.graph.erase_node(node)
    module.recompile()


def _may_change_its_input(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = str(getattr(node.target, "__name__", node.target))
    return (
        _out_of_place(name) != name
        or node.target in (operator.setitem, *_WITHOUT_ASSIGNMENT)
        or bool(node.kwargs.get("inplace"))
    )


def _make_out_of_place(module: fx.GraphModule) -> None:
    """Cached tensors are read again: nothing may overwrite its input."""
    for child in module.modules():
        if "inplace" in vars(child):
            vars(child)["inplace"] = False
    for node in module.graph.nodes:
        if node.op not in ("output", "placeholder") and not node.users:
            raise ValueError(f"{node.name} is read by no other, and may change its input in place")
        if node.op == "call_method" and node.target == "view":
            node.target = "reshape"  # channels-last tensors cannot always be viewed
        if node.op == "call_method" and hasattr(Tensor, _out_of_place(node.target)):
            node.target = _out_of_place(node.target)
        if node.op == "call_function":
            name = _out_of_place(getattr(node.target, "__name__", ""))
            if getattr(torch, f"{name}_", None) is node.target:
                node.target = getattr(torch, name)
            node.target = _WITHOUT_ASSIGNMENT.get(node.target, node.target)
            if node.kwargs.get("inplace"):
                node.kwargs = {**node.kwargs, "inplace": False}
    module.recompile()


def _out_of_place(name: str) -> str:
    """``mul_`` -> ``mul``; others stay."""
    return name if name.endswith("__") else name.removesuffix("_")
