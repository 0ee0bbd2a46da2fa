"""Fixtures that several test modules share."""

import os
import shutil
from pathlib import Path

import families as families_module
import gpu_layers
import hypothesis
import layers as layers_module
import pytest
import wrapped as wrapped_module
from random_gguf import write_adapter, write_base
from tiny import TinyModel, cached_build, cached_models, cached_sources

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure():
    """With LOGO_TEST_GPU_LAYERS, every model of the tests is placed on the GPU."""
    gpu_layers.place_models()


@pytest.fixture(scope="session", autouse=True)
def user_folder(tmp_path_factory):
    """No test touches the real home or sees its user's settings: LOGO_LOCAL_HOME is elsewhere."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("LOGO_LOCAL_")]:
            patch.delenv(name)
        patch.setenv("LOGO_LOCAL_HOME", str(folder))
        yield folder


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


# What each of `described_adapters` is for: words that no prompt of another one has.
EXAMPLES = {
    "ad0": ["red green blue", "blue red", "green blue red red"],
    "ad1": ["alpha beta gamma", "beta alpha", "gamma alpha beta beta"],
    "ad2": ["north south", "west north east", "south east west"],
    "ad3": ["one two three four five six", "six five four", "two three one four"],
    "ad4": ["dog cat", "cat dog horse", "horse dog cow"],
}


@pytest.fixture(scope="session")
def described_adapters(random_adapters, tmp_path_factory):
    """`random_adapters` with EXAMPLES beside them."""
    folder = tmp_path_factory.mktemp("described-adapters")
    for name, prompts in EXAMPLES.items():
        shutil.copy(random_adapters / f"{name}.gguf", folder)
        (folder / f"{name}.prompts.txt").write_text("".join(f"{line}\n" for line in prompts))
    return folder


@pytest.fixture(scope="session")
def random_llama(random_base):
    """`random_base` loaded by llama_cpp itself, without logo_local."""
    from llama_cpp import Llama

    llama = Llama(str(random_base), n_ctx=256, verbose=False)
    yield llama
    llama.close()


@pytest.fixture(scope="session")
def tiny_folder(request):
    """Where the tiny Hugging Face models lie (tiny.py), built once and kept in pytest's cache."""
    cache = request.config.cache.mkdir("tiny")
    sources = cached_sources(cache)
    if sources is None:
        pytest.skip("needs llama.cpp's converters: pip cannot fetch llama-cpp-python's source")
    return cached_models(cache, sources)


@pytest.fixture(scope="session")
def families(request):
    """Where the tiny models of many architectures lie (families.py), built once and kept."""
    return _built(request, families_module, "families")


@pytest.fixture(scope="session")
def layers(request):
    """Where the tiny models with experts and fused layers lie (layers.py), built once and kept."""
    return _built(request, layers_module, "layers")


@pytest.fixture(scope="session")
def wrapped(request):
    """Where the tiny models with a text part lie (wrapped.py), built once and kept."""
    return _built(request, wrapped_module, "wrapped")


def _built(request, module, name):
    cache = request.config.cache.mkdir("tiny")
    sources = cached_sources(cache)
    if sources is None:
        pytest.skip("needs llama.cpp's converters: pip cannot fetch llama-cpp-python's source")
    return cached_build(cache, sources, Path(module.__file__), name)


@pytest.fixture(scope="session")
def tiny_llama(tiny_folder):
    """A tiny Llama with grouped-query attention, its PEFT adapters, and its base GGUF in f32."""
    return TinyModel(tiny_folder / "llama")


@pytest.fixture(scope="session")
def tiny_qwen2(tiny_folder):
    """The same for a tiny Qwen2, which has biases and shares its embedding with its output."""
    return TinyModel(tiny_folder / "qwen2")


@pytest.fixture(scope="session", params=["tiny_llama", "tiny_qwen2"])
def tiny_model(request):
    """Each of the tiny models in turn."""
    return request.getfixturevalue(request.param)
