"""A network cut in two downstream of a group: its head runs once per image, its tail per coalition.

Two ways lead into the tail. *Masked*: the consumers read their cached inputs times the mask; right
for every group. *Summed*: in a flat group the consumers' outputs are linear in the mask, so the
output of a coalition is a sum of one contribution per unit and no consumer runs again (`entries`).
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from shapray.engine.entries import ADDITIONS, Entry, find_entries
from shapray.engine.measure import TRACE_IMAGES, measure, numbers
from shapray.network.channel_dimension import channel_dimension
from shapray.network.group import Channels, Group
from shapray.network.statistics import KeptNorm

WORTH = 2  # of a layer's multiply-adds take as long as one of a product, whose tables are large


class UnsplittableError(ValueError):
    """The traced network does not show every consumer of a group; the message says which."""


@dataclass(frozen=True)
class Split:
    """Parts of a folded network, cut downstream of one group.

    Attributes:
        head: images -> the sides, a tuple of tensors per image.
        n_outputs: of the network.
        side_numbers: that are cached of one image.
        masked: (sides per row, a mask per consumer and norm over channels) -> outputs.
        masks: per call of a consumer or of a norm over channels, the unit of each of its input
            channels, -1 for none: int64, shaped to broadcast with the input after the batch
            dimension.
        entries: of the summed way; empty if it is not open to this group.
        summed: (values of the entries per row, sides per row) -> outputs, or None.
        multiplied: whether products of coalitions with contributions are quicker than consumers.
        summed_sides: indices of the sides that `summed` reads.
        sources: per consumer, the index of its input among the sides; None in a deep group.
        bytes_per_row: most that is alive at once in the tail, float32.
    """

    head: fx.GraphModule
    n_outputs: int
    side_numbers: int
    masked: fx.GraphModule
    masks: tuple[Tensor, ...]
    entries: tuple[Entry, ...]
    summed: fx.GraphModule | None
    multiplied: bool
    summed_sides: tuple[int, ...]
    sources: tuple[int | None, ...]
    bytes_per_row: int


def _is_per_image(node: fx.Node, of_images: set[fx.Node]) -> bool:
    if node not in of_images:  # a constant may happen to have as many entries
        return False
    meta = node.meta.get("tensor_meta")
    shape = getattr(meta, "shape", None)
    return shape is not None and len(shape) > 0 and shape[0] == TRACE_IMAGES


def split(folded: fx.GraphModule, group: Group, example: Tensor) -> Split:
    """Cut a folded network downstream of a group.

    Args:
        folded: from `fold`.
        group: its consumers are modules of the network.
        example: (1, channels, height, width).
    Raises:
        UnsplittableError: see there.
    """
    measure(folded, example)
    nodes = list(folded.graph.nodes)
    output = nodes[-1].args[0]
    assert isinstance(output, fx.Node), "the network returns one tensor"
    by_module = {reader.module: reader for reader in (*group.consumers, *group.statistics)}
    calls = [n for n in nodes if n.op == "call_module" and n.target in by_module]
    missing = by_module.keys() - {str(call.target) for call in calls}
    if missing or any(not call.args for call in calls):
        raise UnsplittableError(
            f"{', '.join(sorted(missing)) or 'a layer'} is called inside a module that torch.fx "
            "does not look into, or by keyword"
        )
    downstream: set[fx.Node] = set()
    for node in nodes:
        if node in calls or any(source in downstream for source in node.all_input_nodes):
            downstream.add(node)

    of_images: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(n in of_images for n in node.all_input_nodes):
            of_images.add(node)

    # Values that do not belong to one image (constants, sizes) are computed in the tail again.
    tail = set(downstream)
    pending = list(downstream)
    while pending:
        for source in pending.pop().all_input_nodes:
            if source not in tail and not _is_per_image(source, of_images):
                tail.add(source)
                pending.append(source)
    sides = [n for n in nodes if n not in tail and any(user in tail for user in n.users)]

    if group.flat and any(call.args[0] not in sides for call in calls):
        raise UnsplittableError("what a consumer reads does not belong to one image each")

    masked = _subgraph(folded, sides, output)
    _mask_readers(masked, folded, calls, len(sides), {norm.module for norm in group.statistics})
    entries = find_entries(folded, calls, by_module, sides, group)
    summed: fx.Graph | None = None
    summed_sides: tuple[int, ...] = ()
    if entries:
        cut = {next(n for n in nodes if n.name == entry.node): None for entry in entries}
        summed = _subgraph(folded, [*cut, *sides], output)
        summed_sides = _drop_unused_inputs(summed, len(entries))
        _reuse_memory(summed, folded)
    _reuse_memory(masked, folded)
    placeholder = next(n for n in nodes if n.op == "placeholder")
    sources = tuple(sides.index(c.args[0]) if c.args[0] in sides else None for c in calls)
    return Split(
        head=fx.GraphModule(folded, _subgraph(folded, [placeholder], tuple(sides))),
        n_outputs=output.meta["tensor_meta"].shape[1],
        side_numbers=numbers(sides),
        masked=fx.GraphModule(folded, masked),
        masks=tuple(_mask(folded, call, by_module[str(call.target)]) for call in calls),
        entries=entries,
        summed=None if summed is None else fx.GraphModule(folded, summed),
        multiplied=sum(e.macs for e in entries) > WORTH * sum(e.product_macs for e in entries),
        summed_sides=summed_sides,
        sources=sources,
        bytes_per_row=_peak_bytes(masked),
    )


def _subgraph(
    module: fx.GraphModule, inputs: Iterable[fx.Node], outputs: fx.Node | tuple[fx.Node, ...]
) -> fx.Graph:
    """The part of a graph that leads from some of its nodes, now placeholders, to others. It is
    made a module, which writes and compiles its code, when nothing about it changes any more."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    needed: set[fx.Node] = set()
    pending = [outputs] if isinstance(outputs, fx.Node) else list(outputs)
    while pending:
        node = pending.pop()
        if node not in needed and node not in copies:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(
        copies[outputs] if isinstance(outputs, fx.Node) else tuple(copies[n] for n in outputs)
    )
    return graph


def _mask(module: fx.GraphModule, call: fx.Node, reader: Channels) -> Tensor:
    units = torch.tensor(reader.unit_of_channel)
    shape = call.args[0].meta["tensor_meta"].shape  # type: ignore[union-attr]
    channel = channel_dimension(module.get_submodule(reader.module), shape)
    return units.view([-1 if dim == channel else 1 for dim in range(1, len(shape))])


def _mask_readers(
    graph: fx.Graph, folded: fx.GraphModule, calls: list[fx.Node], n_sides: int, norms: set[str]
) -> None:
    """Multiply each consumer's input by a mask, a new placeholder after the sides, and give it to
    each norm over channels."""
    for name in norms:
        folded.add_submodule(_kept(name), KeptNorm(folded.get_submodule(name)))
    names = {call.name for call in calls}
    last_input = [n for n in graph.nodes if n.op == "placeholder"][n_sides - 1]
    found = [n for n in graph.nodes if n.op == "call_module" and n.name in names]
    assert len(found) == len(calls)
    for position, call in enumerate(found):
        with graph.inserting_after(last_input):
            mask = graph.placeholder(f"mask_{position}")
        last_input = mask
        if call.target in norms:
            call.target, call.args = _kept(str(call.target)), (call.args[0], mask)
            continue
        with graph.inserting_before(call):
            product = graph.call_function(torch.mul, (call.args[0], mask))
            product.meta = dict(call.args[0].meta) | {"macs": 0}
        call.replace_input_with(call.args[0], product)


def _kept(norm: str) -> str:
    return norm.replace(".", "_") + "_of_those_kept"


def _drop_unused_inputs(summed: fx.Graph, n_entries: int) -> tuple[int, ...]:
    """Remove the sides that nothing reads; returns the indices of those that stay."""
    placeholders = [n for n in summed.nodes if n.op == "placeholder"]
    kept = []
    for position, node in enumerate(placeholders[n_entries:]):
        if node.users:
            kept.append(position)
        else:
            summed.erase_node(node)
    return tuple(kept)


def _reuse_memory(graph: fx.Graph, module: fx.GraphModule) -> None:
    """Let activations and additions overwrite values that nothing else reads.

    A tail's inputs are made for it and are its to overwrite, the masked copies included.
    """
    fresh = {
        n
        for n in graph.nodes
        if n.op == "placeholder"
        or (n.op == "call_function" and n.target in (*ADDITIONS, torch.mul))
        or (
            n.op == "call_module"
            and isinstance(module.get_submodule(n.target), nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        )
    }
    for node in graph.nodes:
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first not in fresh or len(first.users) > 1:
            continue
        if _is_relu(module, node):
            # as a function: the module may be called elsewhere on a value that must stay
            node.op, node.target, node.kwargs = "call_function", torch.relu_, {}
        elif node.target is operator.add and first.op != "placeholder" and _alike(node, first):
            node.target = operator.iadd
        else:
            continue
        fresh.add(node)


def _alike(node: fx.Node, other: fx.Node) -> bool:
    """Same shape and type: a sum with what is larger has no room in the smaller."""
    metas = [n.meta.get("tensor_meta") for n in (node, other)]
    shapes = [(getattr(meta, "shape", None), getattr(meta, "dtype", None)) for meta in metas]
    return shapes[0] == shapes[1] and None not in shapes[0]


def _is_relu(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), nn.ReLU)
    return node.target in (torch.relu, nn.functional.relu)


def _peak_bytes(graph: fx.Graph) -> int:
    """Most bytes of float32 values alive at once for one row."""
    size = {}
    for node in graph.nodes:
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        size[node] = 4 * shape.numel() // TRACE_IMAGES if shape is not None and len(shape) else 0
    last_use = {source: node for node in graph.nodes for source in node.all_input_nodes}
    alive = peak = 0
    for node in graph.nodes:
        alive += size[node]
        peak = max(peak, alive)
        alive -= sum(size[s] for s in node.all_input_nodes if last_use[s] is node)
    return peak
