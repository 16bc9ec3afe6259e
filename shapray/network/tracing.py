"""A network as torch.fx traces it, down to its layers."""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from shapray.network.along_channels import AlongChannels
from shapray.network.moved import Moved
from shapray.network.padded import Padded
from shapray.network.reduced import Reduced
from shapray.network.reductions import COMPOSED
from shapray.network.reshaped import Reshaped
from shapray.network.statistics import KeptNorm

LAYERS = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
STEPS = (AlongChannels, Moved, Padded, Reduced, Reshaped)


def traced(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """A network as torch.fx traces it, down to its layers; it shares them."""
    graph = LayerTracer(example).trace(model)
    # what is pickled is traced again, by a tracer of this class without arguments: torch.fx's own
    # will do, since every module is a layer then
    graph._tracer_cls = fx.Tracer
    return fx.GraphModule(model, graph, type(model).__name__)


class LayerTracer(fx.Tracer):
    """Traces down to layers, those of classes derived from PyTorch's among them. What a forward
    asks of sizes before it goes on (are these the channels it was made for?) is answered with an
    example; what it asks of the numbers is not, they are another image's next time.

    Args:
        example: one image, (1, C, H, W).
    """

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.example = example
        self.answers: dict[fx.Node, Any] = {}
        self.outputs: dict[str, list[Any]] = {}  # of layers, call by call

    def trace(self, root: nn.Module, *args: Any, **kwargs: Any) -> fx.Graph:  # type: ignore[override]
        # Before: while a network is traced, its layers do not run.
        self.outputs = self._outputs(root)
        return super().trace(root, *args, **kwargs)

    def _outputs(self, root: nn.Module) -> dict[str, list[Any]]:
        """What every layer makes of the example, call by call."""
        found: dict[str, list[Any]] = {}
        handles = [
            module.register_forward_hook(
                lambda _, __, output, name=name: found.setdefault(name, []).append(output)
            )
            for name, module in root.named_modules()
            if self.is_leaf_module(module, name)
        ]
        try:
            with torch.no_grad():
                root(self.example.clone())
        finally:
            for handle in handles:
                handle.remove()
        return found

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **named: Any,
    ) -> Any:
        """The value of an operation; of what is composed of several, theirs."""
        if kind in ("call_function", "call_method") and target in COMPOSED:
            composed = COMPOSED[target](*args, **kwargs)
            if composed is not NotImplemented:
                return composed
        return super().create_proxy(kind, target, args, kwargs, *rest, **named)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if not _is_of_sizes(obj.node):
            return super().to_bool(obj)
        return bool(self._answer(obj.node))

    def _answer(self, node: fx.Node) -> Any:
        """What a node is for the example; found out once."""
        if node not in self.answers:
            self.answers[node] = self._evaluated(node)
        return self.answers[node]

    def _evaluated(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.example
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.root)
        args, kwargs = map_arg((node.args, node.kwargs), self._answer)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_module":
            calls = [n for n in node.graph.nodes if n.op == node.op and n.target == node.target]
            return self.outputs[str(node.target)][calls.index(node)]
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *STEPS, KeptNorm)) or super().is_leaf_module(
            m, module_qualified_name
        )


def _is_of_sizes(node: fx.Node) -> bool:
    """Whether all that a node knows of the image is sizes."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim")
    if node.op == "call_method" and node.target in ("size", "dim"):
        return True
    sources = node.all_input_nodes
    return node.op == "call_function" and bool(sources) and all(map(_is_of_sizes, sources))
