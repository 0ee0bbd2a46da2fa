"""The command line: parse options, call the engine, and print what `report` formats."""
