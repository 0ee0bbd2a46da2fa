"""The entry point of the program: `logo-local`, or `python -m logo_local`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl+C exits without a traceback, even during imports."""
    try:
        from .commands.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
