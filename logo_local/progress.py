"""Progress of long work, whose stages are also closed after an error; and a timer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Passes (stage, done, total) on to `report`, and records unfinished stages."""

    def __init__(self, report: Callable[[str, int, int], None]) -> None:
        self._report = report
        self._open: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report the progress."""
        if done < total:
            self._open[stage] = total
        else:
            self._open.pop(stage, None)
        self._report(stage, done, total)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Report open stages as done if this block raises, so that no progress bar remains."""
        try:
            yield
        except BaseException:
            for stage, total in list(self._open.items()):
                self(stage, total, total)
            raise


def ms_since(started: float) -> float:
    """Milliseconds since `time.perf_counter()` was `started`."""
    return (time.perf_counter() - started) * 1000
