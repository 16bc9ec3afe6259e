"""Where a cut network can be compared with the whole one: outputs that kept their shape."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def find_blocks(whole: nn.Module, cut: nn.Module, image: Tensor) -> list[str]:
    """Names of the modules that follow one another from images to logits and can be compared.

    These are the network's own modules and, where one of them is a Sequential or gives back the
    logits itself (a wrapped network), those in it. Not what lies within a block: there, one branch
    may make up for another. Not convolutions and linear layers, whose scale means nothing if a
    BatchNorm follows. They can be compared if they are called once and put out tensors of the same
    shape in both networks.

    Args:
        whole, cut: in eval mode, on the image's device.
        image: (1, channels, height, width).
    """
    with torch.inference_mode():
        with outputs_of(whole, [name for name, _ in whole.named_modules()]) as of_whole:
            logits = whole(image.clone())
        names = _in_line(whole, of_whole, logits)
        with outputs_of(cut, names) as of_cut:
            cut(image.clone())
    seen, blocks = [logits], []
    for name in names:
        if len(of_whole[name]) != 1 or len(of_cut[name]) != 1:
            continue
        output, after = of_whole[name][0], of_cut[name][0]
        if not isinstance(output, Tensor) or not isinstance(after, Tensor):
            continue
        if output.shape == after.shape and not any(output is other for other in seen):
            blocks.append(name)
            seen.append(output)  # a Sequential's is that of its last module
    return blocks


def _in_line(
    module: nn.Module, outputs: Mapping[str, list[Any]], logits: Tensor, prefix: str = ""
) -> list[str]:
    names = []
    for name, child in module.named_children():
        path = prefix + name
        is_wrapped = any(output is logits for output in outputs[path])
        if isinstance(child, nn.Sequential) or is_wrapped:
            names += _in_line(child, outputs, logits, f"{path}.")
        if not isinstance(child, nn.Conv2d | nn.Linear):
            names.append(path)
    return names


@contextlib.contextmanager
def outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Any]]]:
    """What some modules put out while the network runs: by name, one for each call."""
    found: dict[str, list[Any]] = {name: [] for name in names}
    with contextlib.ExitStack() as hooks:
        for name, calls in found.items():

            def note(_: nn.Module, __: Any, output: Any, calls: list[Any] = calls) -> None:
                calls.append(output)

            hooks.enter_context(network.get_submodule(name).register_forward_hook(note))
        yield found
