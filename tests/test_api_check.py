"""Forks of llama-cpp-python are refused by what they lack, whatever their version says."""

from types import SimpleNamespace

import llama_cpp
import pytest

from logo_local.commands import doctor
from logo_local.engine import LoGo
from logo_local.errors import NativeError
from logo_local.llama import api_check
from logo_local.llama.api_check import missing_parts


class Fork:
    """A `Llama` that takes any argument and drops it."""

    def __init__(self, model_path, **kwargs):
        pass

    def generate(self, tokens, *args, **kwargs):
        pass

    create_completion = create_chat_completion = eval = generate


def fork():
    names = {name: getattr(llama_cpp, name) for name in api_check._FUNCTIONS}
    names["llama_set_adapters_lora"] = lambda ctx, adapter, scale: 0
    del names["llama_adapter_lora_init"]
    return SimpleNamespace(**names, Llama=Fork, __version__="0.3.36")


def test_the_installed_one_lacks_nothing():
    assert missing_parts(llama_cpp) == []


def test_what_a_fork_lacks_is_named():
    missing = missing_parts(fork())
    assert missing[:2] == [
        "there is no llama_adapter_lora_init",
        "llama_set_adapters_lora takes other arguments",
    ]
    assert any(line.startswith("Llama.__init__ has no n_gpu_layers, seed") for line in missing)
    assert any(line.startswith("Llama.generate has no temp") for line in missing)
    assert "there is no Llama.reset" in missing


@pytest.fixture
def forked(monkeypatch):
    monkeypatch.setattr(api_check, "llama_cpp", fork())
    api_check.check_api.cache_clear()
    yield
    api_check.check_api.cache_clear()


def test_an_engine_does_not_start_with_a_fork(forked, random_base, random_adapters):
    with pytest.raises(NativeError) as caught:
        LoGo(random_base, random_adapters)
    assert "llama_adapter_lora_init" in str(caught.value)
    assert "may be a fork" in caught.value.hint


def test_the_doctor_says_so(forked):
    (finding,) = [one for one in doctor.examine() if one.name == "llama.cpp"]
    assert not finding.ok
    assert "there is no llama_adapter_lora_init" in finding.value
