"""Output for all programs: reports, the terminal, shared options, opening an engine."""
