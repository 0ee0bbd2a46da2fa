"""Computes profiles from texts and caches them by content.

Cache files contain vectors and sampled texts, not the example prompts. Damaged files and files of
another model are replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..files.cache_file import keep, kept
from ..hidden_states import FloatArray
from .contrasts import n_wordings
from .profiles import Profile

log = logging.getLogger(__name__)

FORMAT = 3  # of these files and of the vectors of `profiles.embed`; a new number invalidates them

Embed = Callable[[str, str], FloatArray]  # (text, form), with the form "chat" or "raw"


def weights_key(path: Path) -> str:
    """A fingerprint of a model file, in hex: a hash of its size and of 64 pieces spread over it.

    Reads 4 MB of a file of gigabytes. That is enough: another quantisation or further training
    changes the whole file.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        for i in range(64):
            stream.seek(i * size // 64)
            digest.update(stream.read(1 << 16))
    return digest.hexdigest()


class ProfileStore:
    """The profiles for the base model in the file `model`, stored under `cache`.

    `shape` is everything else that a text's vector depends on: the chat template, and where and
    how hidden states are read. `shipped` is a read-only folder of vectors that come with adapters.
    """

    def __init__(
        self, cache: Path, model: Path, shape: str = "", shipped: Path | None = None
    ) -> None:
        made_by = hashlib.sha256(shape.encode()).hexdigest()[:8]
        self.key = f"{weights_key(model)[:32]}-{made_by}-{FORMAT}"
        self.folder = cache / "profiles" / self.key
        self._folders = [self.folder, *([shipped / self.key] if shipped is not None else [])]

    def past_file(self, data: Path) -> Path:
        """The file with this model's past prompt statistics in the user's folder `data`."""
        return data / "past" / f"{self.key}.npz"

    def of_prompts(
        self, texts: Sequence[str], contrasts: Sequence[Sequence[str]], embed: Embed, form: str
    ) -> Profile:
        """The profile of given prompts; `embed` computes the vector (F,) of a text in a `form`."""
        against = tuple(self.vectors(kind, embed, form) for kind in contrasts)
        vectors = self.vectors(texts, embed, form)
        return Profile(vectors, "prompts", contrasts=against, wordings=n_wordings(texts))

    def of_samples(
        self, key: str, make: Callable[[], tuple[list[str], float]], embed: Embed, form: str
    ) -> Profile | None:
        """The self-profile of the adapter with content `key`; `make` samples texts and their gain.

        None if the adapter generated no text.
        """
        path = self._samples(key)
        made = _load_samples(path)
        if made is None:
            made = make()
            texts, gain = made
            keep(path, json.dumps({"texts": texts, "gain": gain}, ensure_ascii=False).encode())
        texts, gain = made
        if not texts:
            return None
        return Profile(self.vectors(texts, embed, form), "samples", gain)

    def has_samples(self, key: str) -> bool:
        """Whether the samples of the adapter with content `key` are cached."""
        return self._samples(key).exists()

    def _samples(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.samples.json"

    def vectors(self, texts: Sequence[str], embed: Embed, form: str) -> FloatArray:
        """One vector (F,) for each text, computed once and cached."""
        known = self.known_vectors(texts, form)
        if known is not None:
            return known
        made = np.stack([embed(text, form) for text in texts])  # (n, F) float32
        stream = BytesIO()
        np.save(stream, made.astype(np.float16))
        keep(self.folder / _vectors_name(texts, form), stream.getvalue())
        return made.astype(np.float16).astype(np.float32)  # equal to what later runs load

    def known_vectors(self, texts: Sequence[str], form: str) -> FloatArray | None:
        """The vectors (n, F) of these texts if they are cached, else None."""
        name = _vectors_name(texts, form)
        loaded = (_load_vectors(folder / name, len(texts)) for folder in self._folders)
        return next((vectors for vectors in loaded if vectors is not None), None)

    def has_vectors(self, texts: Sequence[str], form: str) -> bool:
        """Whether the vectors of these texts are cached."""
        return any((folder / _vectors_name(texts, form)).exists() for folder in self._folders)


def _vectors_name(texts: Sequence[str], form: str) -> str:
    key = hashlib.sha256(json.dumps([form, *texts]).encode()).hexdigest()
    return f"{key[:32]}.vectors.npy"


def _load_vectors(path: Path, n_texts: int) -> FloatArray | None:
    data = kept(path)
    if data is None:
        return None
    try:
        vectors: Any = np.load(BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        log.warning("%s will be recreated: %s", path, error)
        return None
    if vectors.ndim == 2 and len(vectors) == n_texts and np.isfinite(vectors).all():
        return vectors.astype(np.float32)  # type: ignore[no-any-return]
    log.warning("%s is damaged and will be recreated", path)
    return None


def _load_samples(path: Path) -> tuple[list[str], float] | None:
    data = kept(path)
    if data is None:
        return None
    try:
        content = json.loads(data)
        texts, gain = content["texts"], float(content["gain"])
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged and will be recreated: %s", path, error)
        return None
    return [str(text) for text in texts], gain
