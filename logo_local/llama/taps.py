"""Callbacks that find the inputs of weights and the tensors of adapters in llama.cpp's graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import NativeError
from ..hidden_states import Place
from .native import EvalCallback, Tensor

MATRIX_PRODUCT = "MUL_MAT"
LORA_SIDES = (".lora_a", ".lora_b")


class Tap(EvalCallback):
    """Copies the inputs of several weights, then stops the pass.

    Set `places` before a decode. Between `start` and `take` there must be one `llama_decode` of a
    single micro-batch. After the last place nothing more is computed, not even the output head,
    and the decode still returns 0. With `whole`, everything is computed.
    """

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self._whole = whole
        self._places: tuple[Place, ...] = ()
        self._wanted: dict[str, list[Place]] = {}
        self._rows: dict[Place, npt.NDArray[np.float32]] = {}

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that the next decode reads."""
        return self._places

    @places.setter
    def places(self, places: Sequence[Place]) -> None:
        self._places, self._wanted = tuple(places), {}
        for place in self._places:
            self._wanted.setdefault(place.target, []).append(place)

    def start(self) -> None:
        """Reset; call before each decode."""
        super().start()
        self._rows = {}

    def take(self) -> dict[Place, npt.NDArray[np.float32]]:
        """The inputs (n_tokens, d) float32 by place; NativeError if any is missing."""
        self.check()
        missing = [place.target for place in self.places if place not in self._rows]
        if missing:
            raise NativeError(
                f"the model's graph has no product with {', '.join(missing)}",
                hint="use --signal each-entropy, which reads no block",
            )
        return self._rows

    def _look(self, node: Tensor, *, ask: bool) -> bool:
        done = len(self._rows) == len(self.places)
        if ask:
            # After the last place every node is requested, so that the pass ends at the next node
            # on every backend.
            return not self._whole if done else self._target_of(node) is not None
        if not done:
            self._read(node)
            done = len(self._rows) == len(self.places)
        return self._whole or not done

    def _target_of(self, node: Tensor) -> str | None:
        weight = node.source(0)
        if weight is None or node.op != MATRIX_PRODUCT:
            return None
        name = weight.name
        return name if name in self._wanted else None

    def _read(self, product: Tensor) -> None:
        target = self._target_of(product)
        x = product.source(1)
        assert target is not None  # only such nodes are requested
        assert x is not None
        for place in self._wanted[target]:
            source = x.before_norm() if place.residual else x
            if source is None:
                raise NativeError(
                    f"the input of {target} has no normalisation before it in this model",
                    hint="use --tap input",
                )
            self._rows[place] = source.rows()


class WeightFinder(EvalCallback):
    """Records the tensors of adapters that the graph uses.

    The next decode in a context with this callback fills `found`, by name
    ("blk.0.attn_q.weight.lora_a"). `copied` are the names of tensors that llama.cpp copies to
    another device for each decode: the tensor itself is not in the graph. No data is read, and the
    whole graph is computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, Tensor] = {}
        self.copied: set[str] = set()

    def start(self) -> None:
        """Reset; call before each decode."""
        super().start()
        self.found, self.copied = {}, set()

    def _look(self, node: Tensor, *, ask: bool) -> bool:
        weight = node.source(0)
        if weight is not None and weight.name.endswith(LORA_SIDES):
            if weight.is_copy:
                self.copied.add(weight.name)
            else:
                self.found[weight.name] = weight
        return not ask
