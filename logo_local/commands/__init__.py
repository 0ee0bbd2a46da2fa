"""The command line: options in, an engine's answers out; what is said is text made in `report`."""
