"""`python -m logo_local` is `logo-local`."""

from .commands.cli import main

main()
