"""`run --jsonl`: requests on standard input, events on standard output, for any language."""
