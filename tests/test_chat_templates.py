"""Chat templates with mistakes: the model stays usable, and a conversation says what is wrong."""

import pytest
import random_gguf
from random_gguf import write_adapter, write_base

from logo_local import LoGo
from logo_local.errors import PromptError
from logo_local.llama.chat_templates import with_usable_templates

CANNOT_COMPILE = {
    "unknown_tag": "{% call_tool x %}{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "unknown_filter": "{% for m in messages %}{{ m['content'] | fromjson }}{% endfor %}",
    "unbalanced": "{% for m in messages %}{{ m['content'] }",
    "no end": "{% for m in messages %}{{ m['content'] }}",
    "deep": "{{ " + "(" * 5000 + " }}",
}
FAILS = {
    "type_error": ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "TypeError"),
    "division": ("{{ 1 / (messages | length - 1) }}", "ZeroDivisionError"),
    "its own words": ("{{ raise_exception('no system message') }}", "no system message"),
}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def opened(tmp_path, monkeypatch):
    engines = []

    def open_with(template):
        monkeypatch.setattr(random_gguf, "CHAT_TEMPLATE", template)
        base = write_base(tmp_path / "base.gguf")
        (tmp_path / "adapters").mkdir()
        for seed in (1, 2):
            write_adapter(tmp_path / f"adapters/a{seed}.gguf", seed)
            (tmp_path / f"adapters/a{seed}.prompts.txt").write_text(f"prompt {seed}\nanother\n")
        engines.append(LoGo(base, tmp_path / "adapters", n_ctx=256, self_profile=False, past=False))
        return engines[-1]

    yield open_with
    for llm in engines:
        llm.close()


def check_unusable_for_chat_only(llm, words):
    with pytest.raises(PromptError) as caught:
        llm.create_chat_completion(HELLO, max_tokens=2)
    assert words in str(caught.value)
    assert "--raw" in caught.value.hint
    # Without a template everything works, profiles of the adapters' prompts among it.
    answer = llm.create_completion("hello", max_tokens=2)
    assert answer["choices"][0]["finish_reason"] == "length"
    assert llm.signal_scores("hello", ["profile"])["profile"].keys() == {"a1", "a2"}


@pytest.mark.parametrize("name", CANNOT_COMPILE)
def test_a_template_that_cannot_be_compiled(opened, name):
    check_unusable_for_chat_only(opened(CANNOT_COMPILE[name]), "it cannot be compiled")


@pytest.mark.parametrize("name", FAILS)
def test_a_template_that_fails(opened, name):
    template, words = FAILS[name]
    check_unusable_for_chat_only(opened(template), words)


def test_sound_templates_and_other_keys_stay_as_they_are():
    keys = {
        "tokenizer.chat_template": random_gguf.CHAT_TEMPLATE,
        "tokenizer.chat_template.tool_use": "{{ messages[0]['content'] }}",
        "general.name": "{% unbalanced",
    }
    assert with_usable_templates(keys) == keys
