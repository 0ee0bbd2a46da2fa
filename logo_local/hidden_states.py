"""Hidden states of the base model: where they are read, and what a reading of a prompt holds.

Shared by `llama.probe`, which reads them, and by `routing`, which computes scores from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where a pass is read: the input of the weight `target`, a GGUF tensor name.

    With `residual`, the state before the block's normalisation instead of after it.
    """

    target: str
    residual: bool = False


# What one pass has read: place -> (n_tokens, d_in) float32.
Reading: TypeAlias = Mapping[Place, FloatArray]
