"""The signals, one module per family; see `registry.signal`."""
