"""`run --jsonl`: the engine behind two pipes, requests in, events out, for apps in any language."""
