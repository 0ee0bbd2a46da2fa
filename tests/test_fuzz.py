"""A short run of fuzz.py; the long one is by hand."""

from fuzz import fuzz


def test_mutated_adapters_are_taken_or_refused(tmp_path):
    found = fuzz(600, seed=7, keep=tmp_path / "failure")
    assert sum(found.values()) == 600
    assert all(found[f"{name}: refused"] > 50 for name in ("GGUF", "safetensors", "config"))
