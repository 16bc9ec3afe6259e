"""A group on images as a game: coalitions of its units, evaluated by the network's tail."""

import copy
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, fx, nn

from shapray.engine.arithmetic import float32_products
from shapray.engine.measure import multiply_adds
from shapray.engine.split import Split, UnsplittableError, split
from shapray.engine.sums import SummedGame, table_bytes
from shapray.engine.tail import Tail, has_convolution, largest_batch
from shapray.network.consumers import active_units, mask_consumers, units_read
from shapray.network.group import Group
from shapray.network.multiply_adds import MultiplyAdds
from shapray.shapley.game import Game
from shapray.shapley.upload import upload
from shapray.shapley.values import POOLED_OUTPUTS, Value

T = TypeVar("T")

CACHE_BYTES = 12 * 2**20  # live values of a CPU batch: beyond this it waits for memory
MAX_ROWS = 4096
HEAD_IMAGES = 16  # of a pass of the head: it is run once, its batch need not be large
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}
PROCESS_BYTES = 900 * 2**20  # a worker before it computes: interpreter, torch, ray, arrow


class NetworkSplit:
    """A network prepared for the coalitions of one group; serves any number of images.

    Args:
        folded: from `trace.fold`; an fx graph, or any module where tracing failed.
        group: a scored group.
        example: (1, channels, height, width) image.
        precision: of the tail, "float32", "tf32" (of what a GPU multiplies; the same as float32
            on a CPU) or "bfloat16"; then its last linear layer stays in float32. The head, the
            value and all sums are in float32 or better.
        device: where the tail runs.
        memory: bytes that cached values, tables and batches may take together.
    """

    def __init__(
        self,
        folded: nn.Module,
        group: Group,
        example: Tensor,
        *,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        memory: int = 2**31,
    ) -> None:
        self.group, self.device = group, torch.device(device)
        self.dtype, self.tf32 = DTYPES[precision], precision == "tf32"
        self.whole = folded.to(self.device)
        self.parts: Split | None = None
        if isinstance(folded, fx.GraphModule):
            try:
                self.parts = split(folded, group, example.to(self.device))
            except UnsplittableError as error:
                warnings.warn(
                    f"group {group.name}: {error}; every coalition runs the whole network",
                    stacklevel=2,
                )
        if self.parts is not None:
            if not has_convolution(self.parts.summed or self.parts.masked):
                self.dtype = torch.float32  # bound by memory: converting costs more than it saves
            self.masked = self._in_precision(self.parts.masked)
            # In float32 every question goes the quicker way. Else all go one way: what is rounded
            # otherwise has an offset.
            exact = self.dtype == torch.float32 and not self.tf32
            summed = self.parts.summed if exact or self.parts.multiplied else None
            self.summed = summed and self._in_precision(summed)
            self.masks = [units.to(self.device) for units in self.parts.masks]
            bytes_per_row = self.parts.bytes_per_row
        else:
            bytes_per_row = _hooked_bytes(folded, example.to(self.device))
        self.head_macs, self.tail_macs = _macs(self.parts, folded, example.to(self.device))
        # The process itself, the cached sides and the tables have their share of the bound.
        on_cpu = self.device.type == "cpu"
        self.room = memory - PROCESS_BYTES if on_cpu else memory
        self.cache = CACHE_BYTES if on_cpu else self.room
        self.rows = max(1, min(MAX_ROWS, min(self.room // 4, self.cache) // max(1, bytes_per_row)))
        if not on_cpu:
            self.rows = largest_batch(self.rows)
        if self.parts is not None:
            self.masked_tail = self._tail(self.masked)
            self.summed_tail = None if self.summed is None else self._tail(self.summed)
        if self.parts is not None:
            self.n_outputs = self.parts.n_outputs
        else:
            with torch.inference_mode():
                self.n_outputs = folded(example.to(self.device, copy=True)).shape[1]
        self.side_bytes = self._side_bytes(example)

    def images_at_once(self, n_permutations: int) -> int:
        """How many images one game may have: their cached values, and the members, values and
        outputs of their coalitions, take a quarter of the memory."""
        n_coalitions = n_permutations * (self.group.n_units + 1)
        each = 3 * self.group.n_units + 8 * (3 + 3 * min(self.n_outputs, POOLED_OUTPUTS))
        return max(1, self.room // 4 // (self.side_bytes + n_coalitions * each))

    def _tail(self, graph: fx.GraphModule) -> Tail:
        return Tail(graph, self.dtype, self.device, tf32=self.tf32)

    def _side_bytes(self, example: Tensor) -> int:
        """Bytes of what is cached of one image, in both precisions."""
        if self.parts is None:
            return 4 * example.numel()
        n_bytes = 4 if self.dtype == torch.float32 else 6
        return max(1, n_bytes * self.parts.side_numbers)

    def _in_precision(self, tail: fx.GraphModule) -> fx.GraphModule:
        """A tail in the split's precision; what comes in must have it already. It shares no weights
        with another, unless it can neither change their type nor their layout."""
        if self.dtype == torch.float32 and self.device.type == "cpu":
            return tail
        tail = copy.deepcopy(tail).to(self.dtype)
        if self.dtype == torch.float32:
            return tail
        output = next(n for n in tail.graph.nodes if n.op == "output")
        (last,) = output.all_input_nodes
        is_linear = last.op == "call_module" and isinstance(
            tail.get_submodule(str(last.target)), nn.Linear
        )
        with tail.graph.inserting_before(last if is_linear else output):
            if is_linear:
                tail.get_submodule(str(last.target)).float()
                cast = tail.graph.call_method("float", (last.args[0],))
                last.replace_input_with(last.args[0], cast)
            else:
                cast = tail.graph.call_method("float", (last,))
                output.replace_input_with(last, cast)
        tail.recompile()
        return tail

    def game(self, images: Tensor, labels: Tensor | None, value: str) -> "NetworkGame":
        """The games of some images, at most `images_at_once` to stay within the memory.

        Args:
            images: (n_images, channels, height, width) float32.
            labels: (n_images,) int64 or None.
            value: name of the value function.
        """
        return NetworkGame(self, images.to(self.device), labels, value)


def _hooked_bytes(model: nn.Module, example: Tensor) -> int:
    """Bytes of all outputs of all modules for one image: no less than what is alive at once."""
    total = 0

    def add(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    handles = [m.register_forward_hook(add) for m in model.modules()]
    with torch.inference_mode():
        model(example.clone())
    for handle in handles:
        handle.remove()
    return total


class NetworkGame(Game):
    """See `Game`; built by `NetworkSplit.game`."""

    def __init__(
        self, split: NetworkSplit, images: Tensor, labels: Tensor | None, value: str
    ) -> None:
        self.split, self.n_players = split, split.group.n_units
        self.device, self.rows = split.device, split.rows
        self.images = images
        n_images = len(images)
        self.active = torch.ones(n_images, self.n_players, dtype=torch.bool)
        with torch.inference_mode(), float32_products():
            parts = split.parts
            if parts is not None:
                self.sides = self._halving(lambda: self._run_head(parts))
                self.low_sides = [
                    side.to(split.dtype) if side.is_floating_point() else side
                    for side in self.sides
                ]
                self._find_active(parts)
            else:
                self._look_for_active()
            self.sums = self._summed()
        self._value_name = value
        self._labels = None if labels is None else labels.to(self.device)

    @cached_property
    def reference(self) -> Tensor:  # type: ignore[override]
        """Outputs of the empty and the full coalition, in the same way as of sampled ones: another
        way, as that of a masked tail in bfloat16, would give them an offset."""
        every, n = torch.arange(len(self.images)), self.n_players
        ends = torch.stack([torch.zeros(n), torch.ones(n)]).bool()
        found = self.outputs(every.repeat_interleave(2), ends.repeat(len(every), 1))
        return found.unflatten(0, (-1, 2))

    @cached_property
    def _value(self) -> Value:
        return Value(self._value_name, self._labels, self.reference[:, 1].double())

    def _look_for_active(self) -> None:
        """Null players of a network that is not split, from what its consumers read."""
        group, whole = self.split.group, self.split.whole
        if not group.flat:
            return
        for start in range(0, len(self.images), HEAD_IMAGES):
            part = slice(start, start + HEAD_IMAGES)
            self.active[part] = active_units(whole, [group], self.images[part])[group.name].cpu()

    def _run_head(self, parts: Split) -> list[Tensor]:
        on_cpu = self.device.type == "cpu"
        at_once = min(self.rows, HEAD_IMAGES) if on_cpu else self.rows
        found = [parts.head(part) for part in self.images.split(at_once)]
        sides = [torch.cat(parts_of_side) for parts_of_side in zip(*found, strict=True)]
        # In the layout of the weights: otherwise every batch would be turned around again.
        return [
            side.contiguous(memory_format=torch.channels_last) if is_map else side.contiguous()
            for side, is_map in zip(sides, self.split.masked_tail.are_maps, strict=False)
        ]

    def _find_active(self, parts: Split) -> None:
        if not self.split.group.flat:
            return
        active = torch.zeros(len(self.images), self.n_players, dtype=torch.bool, device=self.device)
        for source, units in zip(parts.sources, self.split.masks, strict=True):
            assert source is not None, "in a flat group the consumers' inputs are cached"
            # channels are the dimension that the units vary along
            channel = 1 + list(units.shape).index(units.numel())
            active |= units_read(self.sides[source], channel, units.flatten(), self.n_players)
        self.active = active.cpu()

    def _summed(self) -> SummedGame | None:
        """The summed way, where it is open and its tables have room."""
        parts = self.split.parts
        if parts is None or self.split.summed_tail is None:
            return None
        if table_bytes(parts, self.n_players) > self.split.room // 4:
            return None
        return SummedGame(
            parts,
            self.split.summed_tail,
            self.sides,
            self.low_sides,
            self.n_players,
            min(self.split.room // 4, self.split.cache),
        )

    def along(self, images: Tensor, orders: Tensor, wanted: Tensor) -> Tensor:
        sums = self.sums
        if sums is None:
            return super().along(images, orders, wanted)
        n_outputs = self.split.n_outputs
        return self._halving(lambda: sums.along(images, orders, wanted, self.rows, n_outputs))

    def subset_values(self, image: int, players: Tensor) -> Tensor:
        sums = self.sums
        if sums is None:
            return super().subset_values(image, players)

        def evaluate() -> Tensor:
            values = []
            for outputs in sums.subsets(image, players, self.rows):
                index = torch.full((len(outputs),), image, device=self.device)
                values.append(self._value(index, outputs.double()))
            return torch.cat(values)

        return self._halving(evaluate)

    def value(self, images: Tensor, outputs: Tensor) -> Tensor:
        return self._value(upload(images, outputs.device), outputs)

    def surrogate(
        self,
    ) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]:
        return self._value.pooled()

    def _halving(self, evaluate: Callable[[], T]) -> T:
        """Evaluate, in ever smaller batches while the device runs out of memory."""
        while True:
            try:
                with float32_products():
                    return evaluate()
            except RuntimeError as error:
                if self.rows == 1 or not _is_out_of_memory(error):
                    raise
            self.rows = max(1, self.rows // 2)

    def outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        sums = self.sums
        if sums is None or not sums.multiplied:
            return self.masked_outputs(images, coalitions)
        n_outputs = self.split.n_outputs
        return self._halving(
            lambda: sums.coalitions(images.cpu(), coalitions, self.rows, n_outputs)
        )

    def masked_outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        """The same by the masked tail, or the whole network: the slower way, open to all."""
        return self._halving(lambda: self._outputs(images, coalitions))

    @torch.inference_mode()
    def _outputs(self, images: Tensor, coalitions: Tensor) -> Tensor:
        if len(images) == 0:
            return torch.empty(0, self.split.n_outputs, device=self.device)
        images, coalitions = upload(images, self.device), upload(coalitions, self.device)
        run = self._hooked if self.split.parts is None else self._masked
        return torch.cat(
            [
                run(index, kept)
                for index, kept in zip(
                    images.split(self.rows), coalitions.split(self.rows), strict=True
                )
            ]
        )

    def _masked(self, images: Tensor, coalitions: Tensor) -> Tensor:
        kept = nn.functional.pad(coalitions.to(self.split.dtype), (0, 1), value=1.0)
        masks = [kept[:, units] for units in self.split.masks]  # unit -1 is always kept
        return self.split.masked_tail(*(side[images] for side in self.low_sides), *masks)

    def _hooked(self, images: Tensor, coalitions: Tensor) -> Tensor:
        low = torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.split.dtype == torch.bfloat16
        )
        products = float32_products(tf32=self.split.tf32)
        with low, products, mask_consumers(self.split.whole, self.split.group, coalitions):
            return self.split.whole(self.images[images]).float()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _macs(parts: Split | None, network: nn.Module, example: Tensor) -> tuple[int, int]:
    """Multiply-adds of the head for an image, and of the tail, consumers included, for a coalition
    of it."""
    if parts is not None:
        return multiply_adds(parts.head), multiply_adds(parts.masked)
    with torch.inference_mode(), MultiplyAdds() as counted:
        network(example.clone())
    return 0, counted.total
