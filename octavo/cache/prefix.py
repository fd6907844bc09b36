"""What is in the cache, by content: chain hashes of full blocks, who holds them, who is computing them."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from octavo.cache.block import Block
from octavo.core.request import Request
from octavo.errors import ConfigurationError

ROOT_HASH = sha256(b"octavo prefix cache").digest()
HASH_ALGORITHMS = ("sha256",)
MAX_SEEN = 1 << 16  # hash-only entries: about 10 MB


class BlockHasher:
    """H(i) = hash(H(i - 1), tokens of block i, extra keys), so equal hashes mean equal prefixes.

    The extra keys (salt, adapter, media) enter at the first block and reach the others through the chain.
    """

    def __init__(self, block_size: int, algorithm: str = "sha256") -> None:
        if algorithm not in HASH_ALGORITHMS:
            raise ConfigurationError(
                f"prefix_caching_hash_algo must be one of {', '.join(HASH_ALGORITHMS)}, got {algorithm!r}"
            )
        self.block_size = block_size

    def extend(self, request: Request) -> None:
        """Brings `request.block_hashes` up to every full block of known tokens."""
        hashes, size = request.block_hashes, self.block_size
        missing = len(request.token_ids) // size - len(hashes)
        if not missing:
            return
        last = hashes[-1] if hashes else ROOT_HASH + _canonical(request.cache_keys)
        start = len(hashes) * size
        tokens = array("I", request.token_ids[start : start + missing * size])
        data, width = tokens.tobytes(), size * tokens.itemsize
        for at in range(0, len(data), width):
            last = sha256(last + data[at : at + width]).digest()
            hashes.append(last)


def _canonical(keys: Sequence[object]) -> bytes:
    """Unambiguous bytes: each key's kind, length and text."""
    parts = []
    for key in keys:
        text = repr(key).encode()
        parts.append(b"%d:%b;" % (len(text), text))
    return b"".join(parts)


class PrefixIndex:
    """Chain hash to block, for each group. A hash has one block; a second copy of the same content stays unindexed.

    Annotations with a size share `annotation_bytes`: the least recently read give way.
    """

    def __init__(self, num_groups: int, annotation_bytes: int = 0) -> None:
        self._blocks: list[dict[bytes, Block]] = [{} for _ in range(num_groups)]
        self._annotations: dict[tuple[int, int], dict[str, Any]] = {}  # (group, block id) -> kind -> data
        self.annotation_bytes = annotation_bytes
        self.annotation_bytes_used = 0
        self._sizes: OrderedDict[tuple[int, int, str], int] = OrderedDict()  # of those with one; latest read last
        self._owners: dict[bytes, str] = {}  # blocks that a running request is about to compute
        self._seen: OrderedDict[bytes, bytes] = OrderedDict()  # hash -> the one that followed it, if any; latest last

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def find(self, group: int, block_hash: bytes) -> Block | None:
        return self._blocks[group].get(block_hash)

    def insert(self, block: Block, block_hash: bytes) -> bool:
        """False if that content is already there (then `block` stays as it is)."""
        if self._blocks[block.group].setdefault(block_hash, block) is not block:
            return False
        block.hash = block_hash
        return True

    def remove(self, block: Block) -> None:
        assert block.hash is not None
        del self._blocks[block.group][block.hash]
        for kind in self._annotations.pop((block.group, block.block_id), ()):
            self.annotation_bytes_used -= self._sizes.pop((block.group, block.block_id, kind), 0)

    def all_blocks(self) -> list[Block]:
        return [block for blocks in self._blocks for block in blocks.values()]

    def annotate(self, block: Block, kind: str, data: Any, num_bytes: int = 0) -> None:
        """Data that lives and dies with the block's place in the index; if it has a size, not longer than there is room
        for all of them."""
        assert block.hash is not None
        if num_bytes:
            if num_bytes > self.annotation_bytes:
                return
            key = (block.group, block.block_id, kind)
            self.annotation_bytes_used += num_bytes - self._sizes.pop(key, 0)
            self._sizes[key] = num_bytes
            while self.annotation_bytes_used > self.annotation_bytes:
                (group, block_id, oldest), size = self._sizes.popitem(last=False)
                self.annotation_bytes_used -= size
                kinds = self._annotations[group, block_id]
                del kinds[oldest]
                if not kinds:
                    del self._annotations[group, block_id]
        self._annotations.setdefault((block.group, block.block_id), {})[kind] = data

    def annotation(self, block: Block, kind: str) -> Any:
        data = self._annotations.get((block.group, block.block_id), {}).get(kind)
        if data is not None and (key := (block.group, block.block_id, kind)) in self._sizes:
            self._sizes.move_to_end(key)
        return data

    # which prompts came by

    def branch(self, hashes: Sequence[bytes]) -> int:
        """After how many blocks this chain leaves an earlier one that went on otherwise; 0 if it leaves none."""
        seen = self._seen
        common = next((i for i, block_hash in enumerate(hashes) if block_hash not in seen), len(hashes))
        return common if common and seen[hashes[common - 1]] else 0

    def note(self, hashes: Sequence[bytes]) -> None:
        """Remembers a chain."""
        seen, following = self._seen, b""
        for block_hash in reversed(hashes):  # beginnings last, so that they are forgotten last
            seen[block_hash] = following or seen.get(block_hash, b"")
            seen.move_to_end(block_hash)
            following = block_hash
        while len(seen) > MAX_SEEN:
            seen.popitem(last=False)

    # who computes what

    def claim(self, hashes: Iterable[bytes], request_id: str) -> list[bytes]:
        """Notes that `request_id` will compute these blocks; returns those that nobody had claimed."""
        return [h for h in hashes if self._owners.setdefault(h, request_id) == request_id]

    def disclaim(self, hashes: Iterable[bytes], request_id: str) -> None:
        for h in hashes:
            if self._owners.get(h) == request_id:
                del self._owners[h]

    def owner(self, block_hash: bytes) -> str | None:
        return self._owners.get(block_hash)
