"""The groups of a network as a tree: what goes together, what it takes to score it, or why it is
not scored."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from rich.console import Console
from rich.tree import Tree
from torch import Tensor, nn

from shapray.config import load_job
from shapray.driver.inputs import CHECK_IMAGES, open_inputs
from shapray.driver.progress import group_meter
from shapray.engine.choose import checked_groups
from shapray.errors import JobError, NetworkError
from shapray.inputs.named import named_model
from shapray.network.cuttable import cuttable, is_program
from shapray.network.find import is_hidden
from shapray.network.group import Group
from shapray.network.probe import probe
from shapray.pruning.sizes import Sizes
from shapray.storage.run_directory import RunDirectory
from shapray.text import amount, duration, some

RANDOM_IMAGES = 2  # that stand for a named network's


@dataclass(frozen=True)
class Overview:
    """What is known of a network's groups before anything is scored.

    Attributes:
        network: in words.
        notes: what is not as the user would expect, a line each.
        groups: all, those that are not scored with their reason.
        hidden: names of the groups that are neither the network's outputs nor never called.
        tail_macs: of those that are scored, multiply-adds per coalition and image.
        sizes: of the whole network and without units.
        seconds: that finding and checking took.
    """

    network: str
    notes: tuple[str, ...]
    groups: tuple[Group, ...]
    hidden: frozenset[str]
    tail_macs: dict[str, int]
    sizes: Sizes
    seconds: float


def of_job(path: str, overrides: Sequence[str], console: Console) -> Overview:
    """The groups of a job's network, checked on its first calibration images; writes nothing.

    Raises:
        JobError: the job or an input is wrong.
    """
    start = time.monotonic()
    job = load_job(path, overrides)
    inputs = open_inputs(job, RunDirectory(job.output))
    images = inputs.calibration.load(0, min(CHECK_IMAGES, len(inputs.calibration)))
    return _overview(
        job.model.factory,
        inputs.notes,
        (inputs.model, inputs.groups),
        images,
        (job.score.groups, job.score.seed),
        start,
        console,
    )


def of_network(name: str, console: Console) -> Overview:
    """The groups of a library's network, checked on random images.

    Args:
        name: see `named_model`.
    Raises:
        JobError: there is none of that name, or it cannot be scored.
    """
    start = time.monotonic()
    network, shape = named_model(name)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(RANDOM_IMAGES, *shape, generator=generator)
    try:
        probe(network, images)
        network, groups = cuttable(network, images[:1])
    except NetworkError as error:
        raise JobError(f"{name}: {error}") from error
    notes = (f"random weights, and {RANDOM_IMAGES} random images for the checks",)
    return _overview(name, notes, (network, groups), images, (("*",), 0), start, console)


def _overview(
    name: str,
    notes: Sequence[str],
    found: tuple[nn.Module, Sequence[Group]],
    images: Tensor,
    asked: tuple[Sequence[str], int],
    start: float,
    console: Console,
) -> Overview:
    """asked: patterns of groups, and the seed of the checks."""
    network, groups = found
    with group_meter(console, len(groups)) as progress:
        checked, tail_macs = checked_groups(network, groups, images, *asked, progress)
    sizes = Sizes(network, groups, images[:1])
    shape = " x ".join(map(str, images.shape[1:]))
    described = (
        f"{name}: {amount(sizes.all_parameters)} parameters, {amount(sizes.all_macs)} "
        f"multiply-adds for an image of {shape}"
    )
    if is_program(network):
        notes = (
            *notes,
            "its forward is written for all channels: it is cut as a program of its layers",
        )
    hidden = frozenset(group.name for group in groups if is_hidden(group))
    seconds = time.monotonic() - start
    return Overview(described, tuple(notes), checked, hidden, tail_macs, sizes, seconds)


def show(overview: Overview, console: Console) -> None:
    """As a tree on a terminal; elsewhere as lines, what is below another one indented."""
    lines = [(_heading(group, overview), _detail(group, overview)) for group in overview.groups]
    if console.is_terminal:
        tree = Tree(overview.network)
        for group, (heading, detail) in zip(overview.groups, lines):
            branch = tree.add(heading, style="dim" if group.reason else "")
            if detail:
                branch.add(detail, style="dim")
        console.print(tree)
    else:
        console.print(overview.network)
        for heading, detail in lines:
            console.print(f"  {heading}" + f"\n    {detail}" * bool(detail))
    for note in overview.notes:
        console.print(f"model: {note}")
    console.print(_total(overview))


def _heading(group: Group, overview: Overview) -> str:
    units = f"{group.n_units:,} unit{'s' * (group.n_units != 1)}"
    if (each := _channels_of_a_unit(group)) > 1:
        units += f" of {each} channels"
    begun = f"{group.name}: {units}, {group.kind}"
    if group.reason is not None:
        return f"{begun}, not scored: {group.reason}"
    tail = overview.tail_macs[group.name]
    return (
        f"{begun}, {'flat' if group.flat else 'deep'}, tail of {amount(tail)} multiply-adds "
        f"({tail / max(1, overview.sizes.all_macs):.0%})"
    )


def _channels_of_a_unit(group: Group) -> int:
    """Of its root, at most."""
    roots = [of.unit_of_channel for of in group.writers if of.module == group.name]
    counts = Counter(unit for units in roots for unit in units if unit >= 0)
    return max(counts.values(), default=1)


def _detail(group: Group, overview: Overview) -> str:
    """What goes with the units; empty where that is nothing."""
    sizes, parts = overview.sizes, []
    if others := [name for name in group.modules if name != group.name]:
        parts.append(f"with {some(by_parent(others))}")
    if group.reason is None:
        left = sizes.parameters({group.name: group.n_units})
        parts.append(f"{1 - left / max(1, sizes.all_parameters):.1%} of the parameters")
    return "; ".join(parts)


def by_parent(names: Sequence[str]) -> list[str]:
    """Modules' names, those with one parent together: ``layer1.0.(bn1, conv2)``."""
    together = []
    for parent, of in groupby(names, lambda name: name.rpartition(".")[0]):
        own = [name.rpartition(".")[2] for name in of]
        last = own[0] if len(own) == 1 else f"({', '.join(own)})"
        together.append(f"{parent}.{last}" if parent else ", ".join(own))
    return together


def _total(overview: Overview) -> str:
    hidden = [group for group in overview.groups if group.name in overview.hidden]
    scored = [group for group in hidden if group.reason is None]
    n_scored, n_units = (sum(group.n_units for group in of) for of in (scored, hidden))
    said = (
        f"scored: {n_scored:,} of {n_units:,} hidden units "
        f"({n_scored / max(1, n_units):.1%}), {len(scored)} of {len(hidden)} groups"
    )
    if others := len(overview.groups) - len(hidden):
        said += f"; {others} more: the network's outputs, or never called"
    return f"{said}; planned in {duration(overview.seconds)}"
