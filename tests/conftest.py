"""Fixtures that several test modules share."""

import pytest
from random_gguf import write_adapter, write_base


@pytest.fixture(scope="session")
def random_base(tmp_path_factory):
    """A small random base model file (random_gguf.write_base)."""
    return write_base(tmp_path_factory.mktemp("random") / "base.gguf")


@pytest.fixture(scope="session")
def random_adapters(tmp_path_factory):
    """A folder of five adapters for `random_base`, of ranks 2 to 6, named ad0 to ad4."""
    folder = tmp_path_factory.mktemp("random-adapters")
    for i in range(5):
        write_adapter(folder / f"ad{i}.gguf", seed=i + 1, rank=2 + i)
    return folder


@pytest.fixture(scope="session")
def random_llama(random_base):
    """`random_base` loaded by llama_cpp itself, without logo_local."""
    from llama_cpp import Llama

    llama = Llama(str(random_base), n_ctx=256, verbose=False)
    yield llama
    llama.close()
