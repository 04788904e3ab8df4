"""What tells contents apart: keys of encode units and of prompt blocks, for the caches.

A unit's key is a hash of every byte that its encoder sees. A block's key is a hash of everything before its end: the
tokens, and for media the units' keys and how the prompt reads them. Keys are 256 bits of BLAKE2b: nobody finds two
contents with one key. They are valid within one deployment, that is, for one model.
"""

import dataclasses
import hashlib

import numpy as np

from epdjax.models.media import EncodeUnit, MediaItem, Prompt

DIGEST = 32


@dataclasses.dataclass(frozen=True)
class ContentKeys:
    """Keys of a prompt's encode units, in order, and of its full blocks."""

    units: tuple[bytes, ...] = ()
    blocks: tuple[bytes, ...] = ()


def content_keys(prompt: Prompt, block_size: int) -> ContentKeys:
    """Keys of a prompt whose KV is kept in blocks of `block_size` tokens. Slow for large media: runs off the serving
    threads."""
    units = [unit_key(unit) for item in prompt.media for unit in item.units]
    return ContentKeys(tuple(units), tuple(_block_keys(prompt, units, block_size)))


def unit_key(unit: EncodeUnit) -> bytes:
    """Hash of all that determines a unit's MM tokens."""
    digest = hashlib.blake2b(digest_size=DIGEST)
    for name, array in sorted(unit.inputs.items()):
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(np.ascontiguousarray(array).data)
    digest.update(f"{unit.size} {unit.tokens};".encode())
    if unit.picks is not None:
        digest.update(unit.picks.tobytes())
    return digest.digest()


def _item_key(item: MediaItem, units: list[bytes]) -> bytes:
    digest = hashlib.blake2b(item.kind.encode() + b"".join(units), digest_size=DIGEST)
    if item.mix is not None:
        digest.update(item.mix.rows.tobytes() + item.mix.weights.tobytes())
    return digest.digest()


def _block_keys(prompt: Prompt, units: list[bytes], block_size: int) -> list[bytes]:
    length = len(prompt.token_ids)
    # What a position adds to the hash besides its token: which item's how-manieth token it reads.
    reads = np.full((length, 2), -1, np.int32)
    items, first_unit, first = [], 0, 0
    for number, item in enumerate(prompt.media):
        positions = prompt.mm_positions[first : first + item.tokens]
        reads[positions] = np.stack([np.full(item.tokens, number), np.arange(item.tokens)], axis=1)
        items.append(_item_key(item, units[first_unit : first_unit + len(item.units)]))
        first, first_unit = first + item.tokens, first_unit + len(item.units)
    keys, last = [], b""
    for start in range(0, length - block_size + 1, block_size):
        span = slice(start, start + block_size)
        digest = hashlib.blake2b(last + prompt.token_ids[span].tobytes(), digest_size=DIGEST)
        for number in dict.fromkeys(reads[span, 0][reads[span, 0] >= 0].tolist()):
            digest.update(items[number])
        digest.update(reads[span, 1].tobytes())
        # Left out where they are as without media: up to its first picture a prompt has the keys of its text.
        counted = np.arange(start, start + block_size, dtype=np.int32)
        for name, more, plain in ((b"rope", prompt.rope_positions, counted[:, None]), (b"sees", prompt.sees, counted)):
            if more is not None and (more[span] != plain).any():
                digest.update(name + np.ascontiguousarray(more[span]).tobytes())
        last = digest.digest()
        keys.append(last)
    return keys
