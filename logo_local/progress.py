"""Progress of long work, whose stages end also when the work is given up; and how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stages:
    """Passes (stage, done, total) on to `report`, and knows which stages are not finished."""

    def __init__(self, report: Callable[[str, int, int], None]) -> None:
        self._report = report
        self._open: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Pass it on."""
        if done < total:
            self._open[stage] = total
        else:
            self._open.pop(stage, None)
        self._report(stage, done, total)

    @contextmanager
    def ended(self) -> Iterator[None]:
        """Report every open stage as done when this block raises, so that no bar stays."""
        try:
            yield
        except BaseException:
            for stage, total in list(self._open.items()):
                self(stage, total, total)
            raise


def ms_since(started: float) -> float:
    """Milliseconds since `time.perf_counter()` was `started`."""
    return (time.perf_counter() - started) * 1000
