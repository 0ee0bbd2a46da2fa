"""`python -m logo_local` is `logo-local`."""

from .cli import main

main()
