"""A small real model for tests: 5.1M parameters in Q4_0, with four adapters of its own.

It answers questions about an invented world in a few milliseconds, which makes it a model that
whole-program tests can wait for. It is no measure of anything: figures come from real models
(docs/quality.md). The adapters have eight example prompts each.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "small_model" / "base.gguf"
ADAPTERS = MODEL.parent / "adapters"
# As arguments of a command.
ARGS = (str(MODEL), "--adapters", str(ADAPTERS))
