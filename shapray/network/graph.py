"""The dependency graph of a network, from torch-pruning."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph


def dependency_graph(model: nn.Module, example: Tensor) -> tuple[DependencyGraph, Any]:
    """torch-pruning's dependency graph of a deep copy of `model`, and the copy's output.

    The graph is read off the autograd graph of one forward pass, so the copy (``graph.model``) is
    in eval mode and all its parameters require grad; `model` itself is left alone.

    Args:
        example: one image, (1, C, H, W).
    """
    outputs = []

    def keep(output: Any) -> Any:
        outputs.append(output)
        return output

    with torch.inference_mode(False), torch.enable_grad():
        graph = DependencyGraph()
        # In a list, or torch-pruning would first try the lone image without its batch dimension.
        inputs = [example.detach().clone()]
        tracked = traceable_copy(model)
        graph.build_dependency(tracked, inputs, output_transform=keep, verbose=False)
    return graph, outputs[0]


def traceable_copy(model: nn.Module) -> nn.Module:
    """A deep copy in eval mode whose parameters all require grad."""
    with torch.inference_mode(False):  # what is copied in inference mode can never require grad
        tracked = copy.deepcopy(model).eval()
        for parameter in tracked.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
    return tracked
