"""The signals, one module for each family: see `registry.signal`."""
