"""A graph run node by node on all images, as far as is asked, keeping what is still to be read."""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from shapray.engine.network_game import PROCESS_BYTES
from shapray.pruning.repair.sites import Site, find_sites

SHARE = 0.45  # of the memory; the rest is for copies of the network, images, patches and sums


class Walk:
    """The values of a graph's nodes, per batch of images, up to a point that moves on.

    A value is let go once no node further on reads it, unless somebody asked to keep it.

    Args:
        graph: from `engine.trace.fold`; every node leaves its inputs as they are.
        images: (n, channels, height, width), on the graph's device.
        batch: images at once.
    """

    def __init__(self, graph: fx.GraphModule, images: Tensor, batch: int) -> None:
        self.graph = graph
        self.nodes = list(graph.graph.nodes)
        self.place = {node.name: i for i, node in enumerate(self.nodes)}
        self.last_read = {source: node for node in self.nodes for source in node.all_input_nodes}
        self.batches = images.split(batch)
        self.values: list[dict[str, Any]] = [{} for _ in self.batches]
        self.done = 0
        self._runner = fx.Interpreter(graph, garbage_collect_values=False)

    def run_to(self, name: str, keep: Container[str] | None = ()) -> None:
        """Compute up to and including a node; does nothing if it has been computed.

        Args:
            keep: nodes of this stretch whose values stay until the next one begins, beside the last
                node's, and of earlier ones that stay on; None: all of this stretch.
        """
        stop = self.place[name] + 1
        if stop <= self.done:
            return
        gone = [
            node.name
            for node in self.nodes[: self.done]
            if (node not in self.last_read or self.place[self.last_read[node].name] < self.done)
            and node.name not in (keep or ())
        ]
        for values, images in zip(self.values, self.batches, strict=True):
            for old in gone:
                values.pop(old, None)
            for node in self.nodes[self.done : stop]:
                values[node.name] = self._run(node, values, images)
                for source in node.all_input_nodes if keep is not None else ():
                    if self.last_read[source] is node and source.name not in (keep or ()):
                        values.pop(source.name, None)
        self.done = stop

    def output_with(self, changed: Mapping[str, Sequence[Tensor]]) -> Tensor:
        """The graph's output if some nodes had other values; the walk stays where it is.

        Args:
            changed: node -> its value per batch; all that lies before the first of them and is
                read behind it must still be there.
        """
        again, outputs = set[fx.Node](), []
        for place, node in enumerate(self.nodes):
            if node.name not in changed and (
                place >= self.done
                or any(n in again or n.name in changed for n in node.all_input_nodes)
            ):
                again.add(node)
        for i, (known, images) in enumerate(zip(self.values, self.batches, strict=True)):
            values = known | {name: of_batches[i] for name, of_batches in changed.items()}
            for node in self.nodes:
                if node in again:
                    values[node.name] = self._run(node, values, images)
            outputs.append(values[self.nodes[-1].name])
        return torch.cat(outputs)

    def _run(self, node: fx.Node, values: dict[str, Any], images: Tensor) -> Any:
        if node.op == "placeholder":
            return images

        def of(source: fx.Node) -> Any:
            return values[source.name]

        args, kwargs = fx.map_arg(node.args, of), fx.map_arg(node.kwargs, of)
        if node.op == "get_attr":
            return self._runner.fetch_attr(str(node.target))
        return getattr(self._runner, node.op)(node.target, args, kwargs)

    def source(self, name: str) -> str:
        """Name of the node whose value a node reads first."""
        return str(self.nodes[self.place[name]].args[0])

    def of(self, name: str) -> list[Tensor]:
        """A node's value, per batch."""
        return [values[name] for values in self.values]

    def put(self, name: str, batch: int, value: Tensor) -> None:
        self.values[batch][name] = value

    def n_rows(self, name: str, n_outputs: int) -> int:
        """Positions of a layer's node with so many output channels, over all images."""
        return sum(value.numel() for value in self.of(name)) // n_outputs


def run_along(walks: Sequence[Walk], sites: Sequence[Site]) -> Iterator[Site]:
    """The sites in the order of what they end in, each when the walks have come there.

    So a layer on a shortcut waits for the sum that it is part of, wherever it is called, and what
    lies on the way to that sum is refitted before anything that reads it.

    Args:
        walks: along the whole network and along the refitted one, of which the layers' inputs and
            outputs stay as well; along the latter alone if there is one.
    """
    *whole, thin = walks
    order = sorted(sites, key=lambda site: (thin.place[site.total], thin.place[site.call]))
    for number, site in enumerate(order):
        ahead = order[number:]
        totals = {other.total for other in ahead}
        for walk in whole:
            walk.run_to(site.total, totals)
        layers = {name for other in ahead for name in (thin.source(other.call), other.call)}
        thin.run_to(site.total, totals | layers)
        yield site


def images_that_fit(graph: nn.Module, example: Tensor, memory: int) -> int:
    """How many images two walks side by side may have, the images themselves counted.

    Args:
        graph: from `engine.trace.fold`; where it is no graph, nothing walks, and one image fits.
        example: (1, channels, height, width).
        memory: bytes, of the whole process.
    """
    if not isinstance(graph, fx.GraphModule):
        return 1
    device = next(graph.parameters()).device
    walks = Walk(graph, example.to(device), 1), Walk(graph, example.to(device), 1)
    layers = [n for n, m in graph.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    most = 0
    with torch.inference_mode():
        for _ in run_along(walks, find_sites(graph, graph, layers)[0]):
            alive = [v for walk in walks for v in walk.values[0].values() if isinstance(v, Tensor)]
            most = max(most, sum(value.nbytes for value in alive))
    room = memory - PROCESS_BYTES if device.type == "cpu" else memory
    return max(1, int(room * SHARE // (most + 2 * example.nbytes)))
