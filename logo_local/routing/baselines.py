"""Running statistics of each adapter's log norms, kept locally.

The z-norm compares an adapter's effect on a prompt with its effect on other prompts: the user's
past prompts, or the generic prompts of the package until there are enough past ones. For each
adapter and module, only the count, the mean and the sum of squared differences of the log norms
are stored (Welford's method). Prompts and their vectors are not.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from ..files.whole_file import written_whole
from ..hidden_states import FloatArray

Moments = npt.NDArray[np.float64]

log = logging.getLogger(__name__)

ENOUGH = 32  # texts; 54 past prompts work as well as 540 (docs/quality.md); fewer were not tested
SAVE_EVERY = 8  # prompts


class Baselines:
    """Running statistics of log norms, keyed by adapter, in the file `path` if one is given.

    The file is read on creation and written after every few prompts and by `save`. A damaged file
    is replaced. If two processes save, the last one wins.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        # key -> (3, n_modules): count, mean, squares
        self._moments = _load(path) if path else {}
        self._unsaved = 0

    def add(self, norms: Mapping[str, FloatArray]) -> None:
        """Add one text: the log norms (n_modules,) of each adapter's modules."""
        for key, values in norms.items():
            kept = self._moments.get(key)
            if kept is None or kept.shape[1] != len(values):
                kept = self._moments[key] = np.zeros((3, len(values)))
            count, mean, squares = kept
            count += 1
            difference = values - mean
            mean += difference / count
            squares += difference * (values - mean)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            self.save()

    def take(self, other: Baselines) -> None:
        """Replace the statistics of the adapters that are in `other`, and save."""
        self._moments |= other._moments
        self._unsaved += 1
        self.save()

    def moments(self, key: str, n_modules: int) -> tuple[FloatArray, FloatArray] | None:
        """Mean and standard deviation (n_modules,) of an adapter's log norms over all texts.

        None if there are fewer than `ENOUGH`.
        """
        kept = self._moments.get(key)
        if kept is None or kept.shape[1] != n_modules or kept[0, 0] < ENOUGH:
            return None
        count, mean, squares = kept
        return mean.astype(np.float32), np.sqrt(squares / count).astype(np.float32)

    def save(self) -> None:
        """Write unsaved statistics. If writing fails, only these statistics are lost."""
        if not self._unsaved or self.path is None:
            return
        self._unsaved = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(self.path) as unfinished, unfinished.open("wb") as stream:
                # Keys are stored as values, not as archive names: they may contain any character.
                arrays: dict[str, Any] = {"keys": list(self._moments)}
                arrays |= {f"m{i}": m.astype("f4") for i, m in enumerate(self._moments.values())}
                np.savez(stream, **arrays)
        except OSError as error:
            log.warning(
                "what texts do to adapters is not remembered: %s: %s", self.path, error.strerror
            )


def _load(path: Path) -> dict[str, Moments]:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            found = {str(k): archive[f"m{i}"] for i, k in enumerate(archive["keys"].tolist())}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        log.warning("%s is damaged and will be recreated: %s", path, error)
        return {}
    return {
        key: kept.astype(np.float64)
        for key, kept in found.items()
        if kept.ndim == 2 and len(kept) == 3 and np.isfinite(kept).all()
    }
