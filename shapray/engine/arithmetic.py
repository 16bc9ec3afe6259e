"""Products of float32 numbers on a GPU: of the numbers themselves, or of their leading bits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_products(*, tf32: bool = False) -> Iterator[None]:
    """In the context, or a function that it decorates, GPUs multiply float32 numbers as they are.

    PyTorch lets a GPU's convolutions round what they multiply to 10 bits (TensorFloat-32) unless
    it is told not to: several times faster, and not what float32 promises.

    Args:
        tf32: let them, and matrix products too.
    """
    wanted: list[tuple[object, str, object]]
    if hasattr(torch.backends.cudnn, "conv"):
        name = "tf32" if tf32 else "ieee"
        wanted = [
            (torch.backends.cudnn.conv, "fp32_precision", name),
            (torch.backends.cuda.matmul, "fp32_precision", name),
        ]
    else:  # PyTorch before 2.9
        wanted = [
            (torch.backends.cudnn, "allow_tf32", tf32),
            (torch.backends.cuda.matmul, "allow_tf32", tf32),
        ]
    before = [getattr(owner, key) for owner, key, _ in wanted]
    for owner, key, value in wanted:
        setattr(owner, key, value)
    try:
        yield
    finally:
        for (owner, key, _), value in zip(wanted, before, strict=True):
            setattr(owner, key, value)
