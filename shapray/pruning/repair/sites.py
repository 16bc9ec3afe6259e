"""Where a network is refitted: a layer, its BatchNorm, and the addition that it ends in."""

import operator
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx, nn

from shapray.engine.trace import norms_folded_into

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_RELUS = (torch.relu, nn.functional.relu)


@dataclass(frozen=True)
class Site:
    """One layer whose weights can be fitted.

    Attributes:
        layer: name of the Conv2d or Linear.
        norm: name of the BatchNorm that was folded into it, None if there is none.
        call: name of the layer's node in the folded graph.
        total: name of the node whose value is the layer's output with all that is added to it
            before anything else is done: a residual block's sum, or the output itself.
        rectified: all that is read of the total is what is above zero.
    """

    layer: str
    norm: str | None
    call: str
    total: str
    rectified: bool


def find_sites(
    network: nn.Module, folded: fx.GraphModule, starts: Iterable[str]
) -> tuple[list[Site], dict[str, str]]:
    """Some layers and all that lie behind them, in the order in which data reaches them.

    Args:
        network: that `folded` was made of.
        folded: its graph, with BatchNorms folded into the convolutions.
        starts: names of layers, those that read other values than before.
    Returns:
        the sites; and the layers that are none, with the reason.
    """
    starts = set(starts)
    norms = {} if network is folded else norms_folded_into(folded)
    layers = {n: m for n, m in folded.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    calls = [n for n in folded.graph.nodes if n.op == "call_module" and n.target in layers]
    times = Counter(str(call.target) for call in calls)
    left_out = {
        name: "it is called inside a module that torch.fx does not look into"
        if isinstance(module, nn.Conv2d | nn.Linear)
        else f"it is a {type(module).__name__}; what is refitted is Conv2d and Linear"
        for name in sorted(starts - times.keys())
        for module in [network.get_submodule(name)]
    }
    sites, changed = [], set[fx.Node]()
    for node in folded.graph.nodes:
        if not (
            (node.op == "call_module" and node.target in starts)
            or any(source in changed for source in node.all_input_nodes)
        ):
            continue
        changed.add(node)
        name = str(node.target)
        if node not in calls:
            continue
        if times[name] > 1:
            left_out[name] = f"it is called {times[name]} times"
        elif not node.args or not isinstance(node.args[0], fx.Node):
            left_out[name] = "it is called by keyword"
        else:
            total = _total(node)
            rectified = all(_is_relu(folded, user) for user in total.users)
            sites.append(Site(name, norms.get(name), node.name, total.name, rectified))
    return sites, left_out


def _total(call: fx.Node) -> fx.Node:
    node = call
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or user.target not in _ADDITIONS or user.kwargs:
            break
        if [argument is node for argument in user.args].count(True) != 1:
            break
        node = user
    return node


def _is_relu(folded: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(folded.get_submodule(str(node.target)), nn.ReLU)
    return node.target in _RELUS or (node.op == "call_method" and node.target == "relu")
