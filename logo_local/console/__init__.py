"""What every program prints with: reports, the terminal, shared options, opening an engine."""
