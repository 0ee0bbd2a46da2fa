"""Figures with matplotlib, which is imported when the first one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import SettingsError
from ..extras import install_hint
from ..files.whole_file import written_whole


def missing_extra(error: ImportError) -> SettingsError:
    """The error for a missing library of the extra `eval`."""
    return SettingsError(
        f"eval needs {error.name}, which is not installed",
        hint=install_hint("eval"),
    )


def save(figure: Any, path: Path) -> None:
    """Write a figure as SVG, atomically."""
    with written_whole(path) as unfinished:
        # Without the date, the same data gives the same file.
        figure.savefig(unfinished, format="svg", metadata={"Date": None})


def load() -> None:
    """Import matplotlib now. Raises SettingsError if it is not installed."""
    figure_of(1, 1)


def figure_of(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its panel or panels; sizes in inches. Avoids pyplot, which needs a display and
    keeps all figures in memory. Raises SettingsError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra(error) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, sharey=columns > 1)
