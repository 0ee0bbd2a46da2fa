"""The routing matrices of a pool: each adapter's A and B at the one projection that is probed.

Built from checked adapter files; holds float32 arrays in memory, from which `scoring` makes the
paper's scores. Knows nothing of llama.cpp. One adapter's entry is kept for as long as its
file does not change.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .adapter_file import AdapterFile
from .base_model import BaseModel
from .errors import PoolError, SettingsError
from .signals import FloatArray

log = logging.getLogger(__name__)

# The paper reads q_proj; the fused projection that contains it is the nearest to it.
PREFERRED = ("attn_q", "attn_qkv")


def block_number(layer: int, base: BaseModel) -> int:
    """The block that `layer` names; negative numbers count from the end, -1 is the last.

    Raises SettingsError outside the model's blocks.
    """
    n = base.n_blocks
    if not -n <= layer < n:
        raise SettingsError(
            f"there is no layer {layer}: the model has {n} blocks",
            hint=f"give --layer a number from {-n} to {n - 1}",
        )
    return layer % n


def choose_target(adapters: Mapping[str, AdapterFile], base: BaseModel, layer: int = -1) -> str:
    """The GGUF name of the weight, in block `layer`, whose input is probed.

    That is `attn_q`, as in the paper, unless another projection of the block is adapted by more
    of the pool. Raises PoolError when no adapter touches the block at all.
    """
    prefix = f"blk.{block_number(layer, base)}."
    counts = Counter(
        target
        for adapter in adapters.values()
        for target in adapter.modules
        if target.startswith(prefix) and len(base.tensors[target]) == 2
    )
    if not counts:
        raise PoolError(
            f"no adapter touches block {prefix[4:-1]}, whose input --layer {layer} asks for",
            hint="choose another block with --layer, or use --probe each",
        )

    def rank(target: str) -> tuple[int, int, str]:
        kind = target.removeprefix(prefix).removesuffix(".weight")
        preference = PREFERRED.index(kind) if kind in PREFERRED else len(PREFERRED)
        return (-counts[target], preference, target)

    return min(counts, key=rank)


@dataclass(frozen=True)
class Entry:
    """One adapter at the target: `a` (rank, d_in), `b` (d_out, rank), both float32."""

    a: FloatArray
    b: FloatArray
    scaling: float


@dataclass(frozen=True)
class RoutingIndex:
    """What is needed to score a pool at one target.

    `adapters` is the pool's own mapping, by which the engine sees whether the index is still
    that of the pool. Adapters that do not adapt the target have no entry and no score.
    """

    target: str
    adapters: Mapping[str, AdapterFile]
    entries: Mapping[str, Entry] = field(repr=False)

    @classmethod
    def build(
        cls,
        adapters: Mapping[str, AdapterFile],
        target: str,
        *,
        previous: RoutingIndex | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RoutingIndex:
        """Read A and B at `target` from every adapter that has it, about 2 rank d x 4 bytes each.

        Entries of `previous` are taken over where target and file are the same. `progress` is
        called with (done, total). An adapter without the target is named in the log.
        """
        kept = previous if previous is not None and previous.target == target else None
        entries: dict[str, Entry] = {}
        for done, (name, adapter) in enumerate(adapters.items(), start=1):
            if target not in adapter.modules:
                log.warning(
                    "%s takes no part in routing: it does not adapt %s, which is probed",
                    name,
                    target,
                )
            elif kept is not None and kept.adapters.get(name) == adapter:
                entries[name] = kept.entries[name]
            else:
                a, b = adapter.factors(target)
                entries[name] = Entry(a, b, adapter.scaling(target))
            if progress is not None:
                progress(done, len(adapters))
        return cls(target=target, adapters=adapters, entries=entries)
