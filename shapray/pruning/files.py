"""All files of a compressed network, published into a run directory."""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from shapray.network.group import Group
from shapray.network.index_maps import kept_channels
from shapray.network.program import is_program
from shapray.pruning.compressed import Compressed
from shapray.pruning.cuts import Cut, plan_json
from shapray.pruning.export import exports
from shapray.storage import names
from shapray.storage.run_directory import RunDirectory

N_COMPARED = 4  # images on which a file read back is compared with the network


def publish(
    store: RunDirectory,
    folder: str,
    *,
    plan: Cut,
    groups: Sequence[Group],
    whole: nn.Module,
    made: Compressed,
    images: Tensor,
    formats: Sequence[str],
) -> tuple[str, ...]:
    """Plan, weights, and the network in other formats; the plan comes last.

    Args:
        folder: of the run directory.
        groups: those that were scored.
        whole: the network before the cut, on the CPU.
        made: what was made of it by the plan, on any device.
        images: (n, channels, height, width) float32, on the CPU.
        formats: beside the weights; see `export`.
    Returns:
        what could not be written, a line each.
    Raises:
        StorageError: a file cannot be written.
    """
    network = copy.deepcopy(made.network).cpu()
    found = exports(network, images[:N_COMPARED], ["safetensors", *formats])
    for name, content in found.files.items():
        store.publish(f"{folder}/{name}", content)
    kept = kept_channels(whole, groups, plan.removed)
    chosen = plan_json(plan, groups, kept, made.dropped, is_program(whole))
    store.publish_json(f"{folder}/{names.PLAN}", chosen)
    return tuple(
        f"{folder}/{names.of_network(name)} is not written: {reason}"
        for name, reason in found.refused.items()
    )
