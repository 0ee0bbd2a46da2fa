"""The interface of routing to the model.

`llama.reader.PromptReader` implements it on llama.cpp; tests have other implementations.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..files.adapter_file import AdapterFile
from ..hidden_states import FloatArray, Framed, Place, Reading


class Reader(Protocol):
    """Reads prompts; see `llama.reader.PromptReader` for the methods."""

    def prompts_to_route(self, prompt: Any) -> Iterator[list[int]]: ...  # noqa: D102
    def frame(self, tokens: Sequence[int]) -> Framed: ...  # noqa: D102
    def frame_text(self, text: str, form: str) -> Framed: ...  # noqa: D102
    def read(  # noqa: D102
        self, prompt: Framed | Sequence[int], places: Sequence[Place]
    ) -> Reading: ...
    def logits(  # noqa: D102
        self, tokens: Sequence[int], adapters: Sequence[AdapterFile]
    ) -> Iterator[FloatArray]: ...
    def gains(  # noqa: D102
        self, tokens: Sequence[int], adapters: Sequence[AdapterFile]
    ) -> list[float]: ...
    def menu_logits(  # noqa: D102
        self, tokens: Sequence[int], lines: Sequence[str]
    ) -> FloatArray: ...
    def written_by(self, adapter: AdapterFile) -> tuple[list[str], float]: ...  # noqa: D102
