"""Digests of what goes into a job: weights, images, settings."""

import hashlib
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def digest(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Hex SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy())
    return sha.hexdigest()


def content_digest(image: Any) -> str:
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    if isinstance(image, Tensor):
        image = image.detach().cpu()
        if image.dtype == torch.bfloat16:  # which NumPy lacks
            image = image.contiguous().view(torch.int16)
        image = image.numpy()
    array = np.asarray(image)
    header = f"{array.dtype} {array.shape};".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()
