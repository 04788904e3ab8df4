"""An instance: one submesh with its parameters, its pools and its compiled steps. It does what it is told, at once and
asynchronously; deciding is the scheduler's business and waiting the engine's."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from epdjax.mesh.devices import InstanceMesh
from epdjax.mesh.transfer import move, shards_in_order
from epdjax.models.media import EncodeUnit
from epdjax.serving.attention.seam import Attention
from epdjax.serving.buckets import Buckets, smallest
from epdjax.serving.ledger import InstanceSpec
from epdjax.serving.live import LiveRequest, pool_rows
from epdjax.serving.moving import MOST_PARTS
from epdjax.serving.paged import POOL_AXES, pool_shape
from epdjax.serving.rows import fill_row, pack_rows
from epdjax.serving.sampling import Sampled
from epdjax.serving.slots import slot_row
from epdjax.serving.steps import Split, prompt_arrays
from epdjax.serving.work import Chunk, KVPart, UnitMove
from epdjax.serving.work import Sequence as Row


@dataclasses.dataclass(frozen=True)
class Staged:
    """What an encode step made.

    Attributes:
        mm: MM tokens ``[units, tokens, mm_width]``.
        picks: per unit, which of its rows are its MM tokens.
        width: devices that encoded it.
    """

    mm: jax.Array
    picks: list[np.ndarray]
    width: int

    def row(self, unit: int) -> int:
        """Where in it a unit is."""
        return dealt(unit, len(self.mm), self.width)


def dealt(unit: int, rows: int, width: int) -> int:
    """The row of a unit among `rows` that `width` devices share. Units are dealt out like cards: the padding is shared
    by the devices instead of idling the last one."""
    return unit % width * (rows // width) + unit // width


class Instance:
    """See the module. Every method only dispatches; none waits for a device.

    Attributes:
        name, roles, submesh: where it runs and what it performs.
        spec: what the scheduler knows of it.
        parts: part name (``encoder``, ``language_model``) -> (recipe, leaves): just what its roles need.
        attention: how it attends in each of its roles.
        programs: (step, bucket) -> compiled program; filled at start-up and fixed from then on.
        pools: KV pool of each layer. slots: see `Slots`. mm_pool: MM tokens ``[rows, mm_width]``.
        staged: encode id -> an encode result waiting to be moved.
    """

    def __init__(
        self,
        place: InstanceMesh,
        spec: InstanceSpec,
        model: Any,
        parts: Mapping[str, tuple[Split, tuple[jax.Array, ...]]],
        buckets: Buckets,
        *,
        dtype: jnp.dtype,
        block_size: int,
        mm_block_size: int,
        attention: str = "auto",
    ):
        """
        Args:
            model: the model's config.
            dtype: of the pools.
            attention: see `EngineConfig.attention`.
        """
        self.name, self.roles, self.submesh = place.name, place.roles, place.submesh
        self.spec, self.model, self.parts, self.buckets = spec, model, parts, buckets
        self.dtype, self.block_size, self.mm_block_size = dtype, block_size, mm_block_size
        self.attention = Attention.of(attention, place.roles, place.submesh, model, dtype, block_size)
        self.programs: dict[tuple, Any] = {}
        self.pools: tuple[jax.Array, ...] = ()
        self.slots: Any = ()
        self.mm_pool: Any = ()
        self.staged: dict[int, Staged] = {}
        self.replicated = self.submesh.replicated
        self.unit_sharding = self.submesh.sharding(("unit",), (self.submesh.width,))
        self.kv_shape = pool_shape(spec.kv_blocks, block_size, model.text)
        self.kv_sharding = self.submesh.sharding(POOL_AXES, (1, 1, model.text.num_kv_heads, 1))
        self.mm_shape = ((spec.mm_blocks + 1) * mm_block_size, model.mm_width)
        self.longest = max(*buckets.prefill_pages, *buckets.decode_pages) * block_size

    @property
    def tensor(self) -> int:
        """Tensor width."""
        return self.submesh.mesh.shape["tensor"]

    def performs(self, role: str) -> bool:
        return role in self.roles

    def make_pools(self) -> None:
        """Fresh, zeroed pools, where its roles need any; all that was in them is lost."""
        if self.performs("P") or self.performs("D"):
            self.pools, self.slots = self.programs["kv_pool", None]()
            self.make_mm_pool()

    def make_mm_pool(self) -> None:
        """A fresh MM pool."""
        self.mm_pool = self.programs["mm_pool", None]()

    def delete_pools(self) -> None:
        """Give their memory back at once, whoever may still refer to them."""
        for array in jax.tree.leaves((self.pools, self.slots, self.mm_pool)):
            array.delete()

    def take_over(self, before: "Instance", *, kv: bool, mm: bool) -> None:
        """Go on where another instance on the same devices is: with its encode results, and with those of its pools
        that are kept."""
        self.staged = before.staged
        if kv:
            self.pools, self.slots = before.pools, before.slots
        if mm:
            self.mm_pool = before.mm_pool

    @property
    def pools_alive(self) -> bool:
        """Whether the pools still hold data; a step that failed after its inputs were donated takes them along."""
        return not any(array.is_deleted() for array in jax.tree.leaves((self.pools, self.slots, self.mm_pool)))

    def _put(self, *arrays: np.ndarray) -> list[jax.Array]:
        return jax.device_put(list(arrays), [self.replicated] * len(arrays))

    # ---- encode ---------------------------------------------------------------------------------------------------

    def encode(self, encode_id: int, units: Sequence[EncodeUnit]) -> jax.Array:
        """Encode units of one bucket, spread over the devices, and stage the result ``[rows, tokens, mm_width]``."""
        width, size = self.submesh.width, smallest(self.buckets.unit_sizes, max(unit.size for unit in units))
        rows = width * smallest(self.buckets.unit_rows(size), -(-len(units) // width))
        inputs = {name: np.zeros((rows, *dims), dtype) for name, (dims, dtype) in self.model.unit_inputs(size).items()}
        for index, unit in enumerate(units):
            row = dealt(index, rows, width)
            for name, array in unit.inputs.items():
                inputs[name][row][tuple(slice(length) for length in array.shape)] = array
        _, leaves = self.parts["encoder"]
        mm = self.programs["encode", (rows, size)](leaves, jax.device_put(inputs, self.unit_sharding))
        picks = [np.arange(unit.tokens) if unit.picks is None else unit.picks for unit in units]
        self.staged[encode_id] = Staged(mm, picks, width)
        return mm

    def send_mm(self, encode_id: int, target: "Instance") -> tuple[jax.Array, ...]:
        """Start moving a staged encode result to `target`: the piece of each encoder by itself, as it is."""
        pieces = shards_in_order(self.staged[encode_id].mm)
        return move(pieces, (target.replicated,) * len(pieces))

    def land_mm(self, pieces_und: tuple[jax.Array, ...], staged: Staged, moves: Sequence[UnitMove]) -> None:
        """Write MM tokens that have arrived here into the MM pool."""
        each, tokens, _ = pieces_und[0].shape
        rows = np.zeros((each * len(pieces_und), tokens), np.int32)
        for unit_move in moves:
            picks = staged.picks[unit_move.row]
            where = pool_rows(unit_move.blocks, len(picks), self.mm_block_size)
            rows[staged.row(unit_move.row), picks] = where
        program = self.programs["land_mm", (len(pieces_und), each, tokens)]
        self.mm_pool = program(self.mm_pool, pieces_und, *self._put(rows))

    def probe(self) -> list[Any]:
        """Run the smallest step of each role on nothing but padding, to see whether the instance can still do it."""
        done: list[Any] = []
        programs = dict(self.programs)  # a switch may add some just now
        smallest_of = {kind: min(key[1] for key in programs if key[0] == kind) for kind in self._steps}
        for kind, shape in smallest_of.items():
            program = programs[kind, shape]
            if kind == "encode":
                inputs = {
                    n: np.zeros((shape[0], *dims), t) for n, (dims, t) in self.model.unit_inputs(shape[1]).items()
                }
                done.append(program(self.parts["encoder"][1], jax.device_put(inputs, self.unit_sharding)))
                continue
            arguments = self._put(*pack_rows(shape[0], shape[-1]))
            if kind == "prefill":
                prompt = {n: np.zeros(dims, t) for n, (dims, t) in prompt_arrays(self.model, *shape[:2]).items()}
                arguments = [self.mm_pool, jax.device_put(prompt, self.replicated), *arguments]
            _, leaves = self.parts["language_model"]
            sampled, self.pools, self.slots = program(leaves, self.pools, self.slots, *arguments)
            done.append(sampled)
        return done

    @property
    def _steps(self) -> list[str]:
        return [{"E": "encode", "P": "prefill", "D": "decode"}[role] for role in self.roles]

    # ---- prefill and decode ---------------------------------------------------------------------------------------

    def prefill(self, chunks: Sequence[Chunk], live: Mapping[str, LiveRequest]) -> Sampled:
        """Run prompt chunks; returns what was sampled after each row, ``[rows bucket]``."""
        shape = self.buckets.prefill_for(len(chunks), max(chunk.length for chunk in chunks))
        assert shape is not None, "the scheduler packs what fits a bucket"
        pages = max(-(-(chunk.start + chunk.length) // self.block_size) for chunk in chunks)
        pages = smallest(self.buckets.prefill_pages, pages)
        prompt = {name: np.zeros(dims, dtype) for name, (dims, dtype) in prompt_arrays(self.model, *shape).items()}
        prompt["mm_rows"][:] = -1
        ints, floats = pack_rows(shape[0], pages)
        for row, chunk in enumerate(chunks):
            request = live[chunk.request_id]
            request.place(chunk.mm_blocks, self.mm_block_size)
            if not request.tokens:  # later, after a preemption, it would count what was run for this very request
                request.cached_tokens = chunk.cached
            if chunk.is_last:
                self.seed(chunk.slot, request)
            for name, some in request.span(chunk.start, chunk.start + chunk.length).items():
                prompt[name][row, : chunk.length] = some
            slot = chunk.slot if chunk.is_last else 0
            fill_row(ints[row], floats[row], request.settings, chunk.start, chunk.length, slot, chunk.kv_blocks)
        _, leaves = self.parts["language_model"]
        sampled, self.pools, self.slots = self.programs["prefill", (*shape, pages)](
            leaves,
            self.pools,
            self.slots,
            self.mm_pool,
            jax.device_put(prompt, self.replicated),
            *self._put(ints, floats),
        )
        return _wanted(sampled, (live[chunk.request_id] for chunk in chunks))

    def decode(self, sequences: Sequence[Row], live: Mapping[str, LiveRequest]) -> Sampled:
        """One decode step; returns what was sampled, ``[rows bucket]``."""
        rows = smallest(self.buckets.decode_rows, len(sequences))
        pages = smallest(self.buckets.decode_pages, max(len(sequence.kv_blocks) for sequence in sequences))
        ints, floats = pack_rows(rows, pages)
        for row, sequence in enumerate(sequences):
            request = live[sequence.request_id]
            place = (sequence.position, 1, sequence.slot, sequence.kv_blocks)
            fill_row(ints[row], floats[row], request.settings, *place)
        _, leaves = self.parts["language_model"]
        sampled, self.pools, self.slots = self.programs["decode", (rows, pages)](
            leaves, self.pools, self.slots, *self._put(ints, floats)
        )
        return _wanted(sampled, (live[sequence.request_id] for sequence in sequences))

    def seed(self, slot: int, request: LiveRequest) -> None:
        """Write all that is known of a sequence into its slot, if its tokens depend on it."""
        if request.seeded:
            row = slot_row(request.known_tokens, request.params.logit_bias, request.stop_token_ids, self.longest)
            args = jax.device_put((np.array([slot], np.int32), row), self.replicated)
            self.slots = self.programs["seed_slot", None](self.slots, *args)

    # ---- moving KV ------------------------------------------------------------------------------------------------

    def send_kv(self, parts: Sequence[KVPart], target: "Instance") -> tuple[jax.Array, ...]:
        """Start moving KV blocks of every layer to `target`."""
        split = self.tensor == target.tensor
        blocks = [block for part in parts for block in part.source_blocks]
        program = self.programs["gather_kv", (self._move_bucket(blocks), split)]
        gathered = program(self.pools, *self._put(self._padded(blocks)))
        return move(gathered, (target.kv_sharding if split else target.replicated,) * len(self.pools))

    def land_kv(self, moved: tuple[jax.Array, ...], parts: Sequence[KVPart], live: Mapping[str, LiveRequest]) -> None:
        """Write KV that has arrived here into the pools, and what is known of the sequences that are complete now into
        their slots."""
        split = self.tensor == 1 or moved[0].sharding == self.kv_sharding
        blocks = [block for part in parts for block in part.blocks]
        last = np.zeros((3, MOST_PARTS), np.int32)
        for index, part in enumerate(parts):
            if part.is_last and (request := live.get(part.request_id)):
                self.seed(part.slot, request)
                last[:, index] = part.slot, request.known - 1, request.tokens[-1]
        self.pools, self.slots = self.programs["land_kv", (self._move_bucket(blocks), split)](
            self.pools, self.slots, moved, *self._put(self._padded(blocks), last)
        )

    def _move_bucket(self, blocks: Sequence[int]) -> int:
        return smallest(self.buckets.move_blocks, len(blocks))

    def _padded(self, blocks: Sequence[int]) -> np.ndarray:
        padded = np.zeros(self._move_bucket(blocks), np.int32)
        padded[: len(blocks)] = blocks
        return padded


def _wanted(sampled: Sampled, requests: Iterable[LiveRequest]) -> Sampled:
    """Without the log-probabilities if nobody wants any: then they need not be fetched."""
    wanted = any(request.params.logprobs is not None for request in requests)
    return sampled if wanted else dataclasses.replace(sampled, logprobs=None)
