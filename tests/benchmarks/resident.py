"""The resident size of a process that embeds the engine, step by step, with the demo model.

    python tests/benchmarks/resident.py

Prints MiB; "adapters" is the memory of the adapters that llama.cpp holds.
"""

from __future__ import annotations

import psutil

QUESTION = [{"role": "user", "content": "Pluralise the noun murderer."}]


def resident() -> float:
    """This process's resident set, in MiB."""
    size: int = psutil.Process().memory_info().rss
    return size / 2**20


def main() -> None:
    """Measure before and after each step."""
    print(f"Python alone: {resident():.0f}")
    from logo_local import LoGo

    print(f"imported: {resident():.0f}")
    llm = LoGo("demo")
    print(f"open, {llm.n_ctx()} tokens of context: {resident():.0f}")
    llm.create_chat_completion(QUESTION)
    held = llm.pool.resident_bytes / 2**20
    print(f"after an answer: {resident():.0f}, of which adapters: {held:.1f}")
    llm.close()
    print(f"closed: {resident():.0f}")


if __name__ == "__main__":
    main()
