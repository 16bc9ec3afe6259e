"""Which module's input depends on which module's output: whether a group is flat or deep."""

import copy
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from shapray.network.graph import traceable_copy
from shapray.network.group import Group

Upstream = dict[str, set[str]]  # module -> modules on whose output its input depends


def is_flat(group: Group, flows: list[Upstream]) -> bool:
    """A consumer that is called twice is upstream of itself; one that a flow lacks is not known."""
    names = {consumer.module for consumer in group.consumers}
    return all(name in flow and not (flow[name] & names) for flow in flows for name in names)


def data_flows(model: nn.Module, example: Tensor) -> list[Upstream]:
    """What each Conv2d's and Linear's input depends on, read in two ways.

    The autograd graph always exists but loses data that goes through a ``detach``; the traced
    program sees that but loses in-place changes, and does not exist where control flow depends on
    data. A group is flat only if neither finds a path.
    """
    flows = [_flow_by_autograd(traceable_copy(model), example)]
    try:
        program = torch.fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception:  # torch.fx raises anything, the network's own errors among them
        return flows
    return [*flows, _flow_by_program(program)]


def _flow_by_program(program: torch.fx.GraphModule) -> Upstream:
    upstream: Upstream = {}
    passed_by: dict[torch.fx.Node, set[str]] = {}
    for node in program.graph.nodes:
        above = set().union(*(passed_by[source] for source in node.all_input_nodes))
        if node.op == "call_module":
            name = str(node.target)
            if name in upstream:
                above |= {name}
            upstream.setdefault(name, set()).update(above)
            above = above | {name}
        passed_by[node] = above
    return upstream


def _flow_by_autograd(model: nn.Module, example: Tensor) -> Upstream:
    """By one forward pass of a copy whose parameters require grad."""
    calls: list[tuple[str, Any, Any]] = []  # module, autograd node of its input, of its output
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def record(name: str) -> Any:
        # The input's node is taken before the call: an in-place layer would replace it.
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append((args[0] if args else kwargs["input"]).grad_fn)

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            calls.append((name, inputs.pop(), output.grad_fn))

        return before, after

    inputs: list[Any] = []
    handles = []
    for name, layer in layers.items():
        before, after = record(name)
        handles += [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        ]
    with torch.inference_mode(False), torch.enable_grad():
        result = model(example.detach().clone())  # held: the nodes live as long as their tensors
    for handle in handles:
        handle.remove()
    assert isinstance(result, Tensor)

    producer = {output: name for name, _, output in calls}
    upstream: Upstream = {}
    for name, source, _ in calls:
        if name in upstream:
            upstream[name].add(name)
        above, stack, seen = upstream.setdefault(name, set()), [source], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in producer:
                above.add(producer[node])
            stack += [before for before, _ in node.next_functions]
    return upstream
