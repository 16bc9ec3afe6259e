"""A network to its groups of removable units."""

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from shapray.errors import NetworkError
from shapray.network.blocks import InGroups, blocks
from shapray.network.coupling import MIXED
from shapray.network.group import Channels, Group, Parameter
from shapray.network.tracker import Tracked, track
from shapray.text import one_line

OF_NETWORK = "its units are the network's outputs"
UNREACHED = "never called, or the network's output does not depend on it"


def find_groups(model: nn.Module, example: Tensor) -> list[Group]:
    """Every group of channels that go together, by the layers that put them out, in the order of
    ``named_modules``.

    `model` is left as it is: what is followed is a deep copy, in eval mode. A group without a
    `reason` is scorable as far as its structure goes; `check_group` tells whether it really is.

    Args:
        example: one image, (1, C, H, W), on the model's device, of which the network makes logits
            (see `probe`).
    Raises:
        NetworkError: the network's channels cannot be followed at all.
    """
    try:
        tracked = track(model, example)
    except Exception as error:  # the network's forward, in a mode that it may not know
        raise NetworkError(
            "the network runs, but its channels cannot be followed through it with one image of "
            f"shape {tuple(example.shape)}: {one_line(error)}"
        ) from error
    while misfit := (finder := _Finder(model, tracked)).whole_convolution():
        tracked.keep_whole(misfit)
    return finder.groups()


def is_hidden(group: Group) -> bool:
    """Whether a group, as it was found, lies between the network's input and its outputs, so that
    it would be scored if it could."""
    return group.reason not in (OF_NETWORK, UNREACHED)


def is_mixed(group: Group) -> bool:
    """Whether a group is excluded for an operation that mixes its channels."""
    return (group.reason or "").startswith(MIXED)


class _Finder:
    """Reads groups off what was followed."""

    def __init__(self, model: nn.Module, tracked: Tracked) -> None:
        self.model, self.tracked = model, tracked
        classes = tracked.coupling.classes
        self.names = [name for name, _ in model.named_modules()]
        self.outputs = {n: classes.found(o).tolist() for n, o in tracked.outputs.items()}
        self.inputs = {n: classes.found(i).tolist() for n, i in tracked.inputs.items()}
        self.norms = {n: classes.found(c).tolist() for n, c in tracked.norms.items()}
        self.statistics = {n: classes.found(c).tolist() for n, c in tracked.statistics.items()}
        self.moves = {n: classes.found(c).tolist() for n, c in tracked.moves.items()}
        self.of_network = {classes.find(label) for label in tracked.of_network}
        self.misfits: dict[int, str] = {}  # class -> a parameter that cannot be cut
        self.parameters = dict(self._parameters())
        self.reasons = self.misfits | tracked.coupling.reasons()

    def groups(self) -> list[Group]:
        claimed: set[int] = set()
        found = []
        shares = self._sharing()
        for name in self.names:
            module = self.model.get_submodule(name)
            if not isinstance(module, _ConvNd | nn.Linear):
                continue
            if name not in self.outputs:
                found.append(_unread(name, module))
            elif not claimed.issuperset(self.outputs[name]):
                first = next(label for label in self.outputs[name] if label not in claimed)
                units = shares[first]
                claimed.update(units)
                found.append(self._group(name, module, units))
        return found

    def _sharing(self) -> dict[int, dict[int, int]]:
        """Class -> the units of its group: class -> number, in the order in which layers have them,
        by ``named_modules``. Classes of one layer are in one group. A convolution in groups passes
        on what it reads, which may be of several groups; only what is nobody else's makes one."""
        group_of: dict[int, set[int]] = {}
        called = [name for name in self.names if name in self.outputs]
        for name in sorted(called, key=self._passes_on):
            own = self.outputs[name]
            if self._passes_on(name):
                own = [label for label in own if label not in group_of]
            # by identity: there are as many mentions of a group as it has units
            before = {id(g): g for label in own if (g := group_of.get(label)) is not None}
            united = set(own).union(*before.values())
            group_of.update(dict.fromkeys(united, united))
        numbered: dict[int, dict[int, int]] = {}
        for name in called:
            for label in self.outputs[name]:
                units = numbered.setdefault(id(group_of[label]), {})
                units.setdefault(label, len(units))
        return {label: numbered[id(united)] for label, united in group_of.items()}

    def _passes_on(self, name: str) -> bool:
        """Whether a layer is a convolution in groups that are removed as a whole, if at all."""
        in_groups = getattr(self.model.get_submodule(name), "groups", 1) > 1
        return in_groups and name not in self.tracked.in_groups

    def whole_convolution(self) -> str | None:
        """A convolution in groups that can only lose whole groups, which is not known yet: what it
        reads or puts out are no equal blocks of units."""
        for units in {id(u): u for u in self._sharing().values()}.values():
            seen = []
            for name, channels in self._in_groups(units):
                seen.append(channels)
                if blocks(len(units), seen) is None:
                    return name
        return None

    def _in_groups(self, units: Mapping[int, int]) -> Iterator[tuple[str, InGroups]]:
        """Convolutions in groups that have some of the units, of which single channels may go."""
        for name, n_groups in self.tracked.in_groups.items():
            for labels in (self.inputs[name], self.outputs[name]):
                if (channels := _units_of(labels, units)) is not None:
                    yield name, (n_groups, channels)

    def _group(self, name: str, module: nn.Module, units: Mapping[int, int]) -> Group:
        consumers = [
            Channels(reader, channels)
            for reader in self.names
            if reader in self.inputs and not self._passes_on(reader)
            if (channels := _units_of(self.inputs[reader], units)) is not None
        ]
        writers = [
            Channels(writer, channels)
            for writer in self.names
            if (put_out := self.outputs.get(writer) or self.norms.get(writer))
            if (channels := _units_of(put_out, units)) is not None
        ]
        parameters = [
            Parameter(parameter, dim, channels)
            for parameter, (dim, labels) in self.parameters.items()
            if (channels := _units_of(labels, units)) is not None
        ]
        statistics = [
            Channels(norm, channels)
            for norm in self.names
            if norm in self.statistics
            and (channels := _units_of(self.statistics[norm], units)) is not None
        ]
        moves = [
            Channels(move, channels)
            for move in self.names
            if move in self.moves and (channels := _units_of(self.moves[move], units)) is not None
        ]
        members = {c.module for c in (*consumers, *writers)}
        members |= {p.name.rpartition(".")[0] for p in parameters}
        group = Group(
            name,
            len(units),
            "linear" if isinstance(module, nn.Linear) else "conv",
            tuple(n for n in self.names if n in members),
            tuple(consumers),
            not statistics and self._is_flat(consumers),
            None,
            tuple(writers),
            tuple(parameters),
            tuple(statistics),
            tuple(moves),
            blocks(len(units), [channels for _, channels in self._in_groups(units)]) or (),
        )
        reason = next(self._obstacles(group, units), None)
        return Group(**{**vars(group), "reason": reason})

    def _is_flat(self, consumers: list[Channels]) -> bool:
        names = {consumer.module for consumer in consumers}
        return not any(self.tracked.above[name] & names for name in names)

    def _obstacles(self, group: Group, units: Mapping[int, int]) -> Iterator[str]:
        """Why the group cannot be scored."""
        if not self.of_network.isdisjoint(units):
            yield OF_NETWORK
        yield from (self.reasons[label] for label in units if label in self.reasons)
        for norm in group.statistics:
            if not units.keys() >= {label for label in self.statistics[norm.module] if label}:
                yield f"{norm.module} is over its channels together with others"
        if group.n_units == 1:
            yield "it has a single unit"
        if not group.consumers:
            yield "no convolution or linear layer reads it"

    def _parameters(self) -> Iterator[tuple[str, tuple[int, list[int]]]]:
        """Parameters that are not the followed layers' own: the dimension that channels lie along,
        and the classes of its entries."""
        coupling = self.tracked.coupling
        for name, labels in self.tracked.parameters.items():
            if name.rpartition(".")[0] in self.norms and labels.ndim == 1:
                continue
            followed = [
                label for label in coupling.classes.among(labels) if label > coupling.n_parameters
            ]
            if not followed:
                continue
            for dim in range(labels.ndim):
                along = coupling.same_along(labels, [d for d in range(labels.ndim) if d != dim])
                if along is not None and labels.shape[dim] > 1:
                    yield name, (dim, coupling.classes.found(along).tolist())
                    break
            else:
                reason = f"the entries of {name} that go with it do not lie along one dimension"
                self.misfits.update(dict.fromkeys(followed, reason))


def _unread(name: str, module: nn.Module) -> Group:
    kind = "linear" if isinstance(module, nn.Linear) else "conv"
    n_units = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return Group(name, cast(int, n_units), kind, (name,), (), False, UNREACHED)


def _units_of(labels: list[int], units: Mapping[int, int]) -> tuple[int, ...] | None:
    """Per channel its unit, -1 for none; None if there is no unit's among them."""
    if units.keys().isdisjoint(labels):
        return None
    return tuple(units.get(label, -1) for label in labels)
