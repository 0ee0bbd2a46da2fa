"""Requests as real clients send them: what is taken, and what the refusals tell them."""

import pytest
import random_gguf
from random_gguf import write_adapter, write_base
from starlette.testclient import TestClient

from logo_local import LoGo
from logo_local.completions import Sampling
from logo_local.errors import ContextError, PromptError
from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
def fake():
    return FakeLoGo({"reverse": 1.0}, ["yes"])


@pytest.fixture
def client(fake):
    with TestClient(create_app([fake]), base_url="http://localhost") as one:
        yield one


NULLS = [
    *("top_logprobs", "functions", "function_call", "audio", "prediction", "web_search_options"),
    *("moderation", "prompt_cache_retention", "max_tokens", "stop", "tools", "response_format"),
    *("logprobs", "chat_template_kwargs", "logit_bias", "seed", "n", "stream", "model"),
]


@pytest.mark.parametrize("name", NULLS)
def test_null_means_absent(client, name):
    answer = client.post(CHAT, json={"messages": HI, name: None})
    assert answer.status_code == 200, answer.text


def test_a_message_may_hold_null_and_what_clients_add(client, fake):
    messages = [
        {"role": "user", "content": "hi", "id": "m1", "name": None},
        {"role": "assistant", "content": "ho", "reasoning_content": "hm", "reasoning": None},
        {
            "role": "user",
            "content": [{"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}}],
        },
    ]
    assert client.post(CHAT, json={"messages": messages}).status_code == 200
    assert [sorted(one) for one in fake.history[-1].messages] == [["content", "role"]] * 3


def test_values_that_mean_something_are_still_refused(client):
    for name, value in (("functions", [{"name": "f"}]), ("prediction", {"type": "content"})):
        answer = client.post(CHAT, json={"messages": HI, name: value})
        assert answer.status_code == 400
        assert name in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_minus_one_is_no_limit_of_the_clients(fake, name):
    app = create_app([fake], defaults=Sampling(max_tokens=77))
    with TestClient(app, base_url="http://localhost") as client:
        assert client.post(CHAT, json={"messages": HI, name: -1}).status_code == 200
        assert client.post(CHAT, json={"messages": HI, name: -2}).status_code == 400
        assert client.post(CHAT, json={"messages": HI, name: 0}).status_code == 400
    assert fake.history[-1].options["max_tokens"] == 77


def test_settings_of_the_template_reach_the_engine(client, fake):
    body = {"messages": HI, "chat_template_kwargs": {"enable_thinking": False}}
    assert client.post(CHAT, json=body).status_code == 200
    assert fake.history[-1].options["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.fixture
def thinking(tmp_path, monkeypatch):
    """Opens an engine whose chat template says [no-thinking] where that is set."""
    template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if enable_thinking is defined and not enable_thinking %}[no-thinking]{% endif %}"
    )
    monkeypatch.setattr(random_gguf, "CHAT_TEMPLATE", template)
    base = write_base(tmp_path / "base.gguf")
    (tmp_path / "adapters").mkdir()
    write_adapter(tmp_path / "adapters/a.gguf", 1)
    settings = {"n_ctx": 256, "self_profile": False, "past": False}
    return lambda **given: LoGo(base, tmp_path / "adapters", **settings, **given)


def sent(llm, monkeypatch):
    """The texts that are completed from now on."""
    seen, real = [], llm.create_completion

    def complete(**given):
        seen.append(llm.detokenize(given["prompt"], special=True).decode())
        return real(**given)

    monkeypatch.setattr(llm, "create_completion", complete)
    return seen


def test_settings_of_the_template_reach_the_template(thinking, monkeypatch):
    with thinking() as llm, llm.base_only():
        texts = sent(llm, monkeypatch)
        settings = {"enable_thinking": False}
        llm.create_chat_completion(HI, max_tokens=1, chat_template_kwargs=settings)
        llm.create_chat_completion(HI, max_tokens=1)
        with pytest.raises(PromptError, match="cannot set messages"):
            llm.create_chat_completion(HI, chat_template_kwargs={"messages": []})
    assert ["[no-thinking]" in text for text in texts] == [True, False]


def test_settings_of_the_template_for_every_conversation(thinking, monkeypatch):
    """They are in what is routed, too, and a call's own come before them."""
    with thinking(chat_template_kwargs={"enable_thinking": False}) as llm, llm.base_only():
        routed = llm.detokenize(llm.tokens_of(HI), special=True).decode()
        texts = sent(llm, monkeypatch)
        llm.create_chat_completion(HI, max_tokens=1)
        own = {"enable_thinking": True}
        llm.create_chat_completion(HI, max_tokens=1, chat_template_kwargs=own)
        llm.create_chat_completion(HI, max_tokens=1)
    assert ["[no-thinking]" in text for text in (routed, *texts)] == [True, True, False, True]


def test_a_prompt_that_is_too_long_has_the_code_that_agents_look_for(client, fake):
    fake._answers = [[ContextError("the prompt does not fit", hint="shorten it")]]
    answer = client.post(CHAT, json={"messages": HI})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


def test_the_engine_says_that_a_prompt_is_too_long(random_base, random_adapters):
    with LoGo(random_base, random_adapters, n_ctx=256, self_profile=False, past=False) as llm:
        long = "word " * 400
        with pytest.raises(ContextError):
            llm.create_completion(long, max_tokens=1)
        with llm.base_only(), pytest.raises(ContextError):
            llm.create_completion(long, max_tokens=1)
        with pytest.raises(ContextError):
            llm.embeddings([long])


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/chat/completions", "/v1/chat/completions: the client's base URL ends in /v1"),
        ("/embeddings", "/v1/embeddings: the client's base URL ends in /v1"),
        ("/v1/v1/chat/completions", "at /v1/chat/completions"),
        ("/v1/responses", "/v1/chat/completions"),
        ("/v1/messages", "/v1/chat/completions"),
        ("/api/chat", "/v1/chat/completions"),
        ("/v1/nothing", "/openapi.json"),
    ],
)
def test_addresses_that_are_not_there_say_what_is(client, path, words):
    answer = client.post(path, json={"model": "auto", "input": "hi"})
    assert answer.status_code == 404
    assert words in answer.json()["error"]["hint"]


@pytest.mark.parametrize("tokens", [[5, 6], [[5, 6], [7]]])
def test_embeddings_of_token_ids_say_what_to_change_in_the_client(client, tokens):
    answer = client.post("/v1/embeddings", json={"model": "auto", "input": tokens})
    assert answer.status_code == 400
    assert "check_embedding_ctx_length=False" in answer.json()["error"]["hint"]


def test_a_body_without_a_content_type_is_json(client):
    request = client.build_request(
        "POST", CHAT, content=b'{"messages":[{"role":"user","content":"a"}]}'
    )
    assert "content-type" not in request.headers
    assert client.send(request).status_code == 200


def test_unknown_model_names_mean_auto_where_the_server_is_told_to(fake):
    with TestClient(create_app([fake], any_model=True), base_url="http://localhost") as client:
        for path, body in ((CHAT, {"messages": HI}), ("/v1/completions", {"prompt": "hi"})):
            answer = client.post(path, json={"model": "gpt-4o-mini", **body})
            assert answer.status_code == 200
            assert answer.json()["model"] == "gpt-4o-mini"
            assert answer.json()["logo"]["route"]["adapters"]
        assert client.post(CHAT, json={"model": "base:nobody", "messages": HI}).status_code == 404
    with TestClient(create_app([fake]), base_url="http://localhost") as client:
        assert client.post(CHAT, json={"model": "gpt-4o-mini", "messages": HI}).status_code == 404


def test_each_request_is_one_line_without_what_it_says(client, caplog):
    with caplog.at_level("INFO", logger="logo_local.server.request_log"):
        client.post(CHAT, json={"messages": [{"role": "user", "content": "my secret"}]})
        client.get("/v1/nothing?key=secret")
        client.get("/v1/models", headers={"host": "evil.example"})
    lines = [line for line in caplog.messages if " ms" in line]
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "POST /v1/chat/completions 200",
        "GET /v1/nothing 404",
        "GET /v1/models 403",
    ]
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": HI}), ("/v1/completions", {"prompt": "a"})]
)
def test_several_answers_to_one_request(client, fake, path, body):
    fake._answers = [["one"], ["two words"], ["three"]]
    settings = {"n": 3, "temperature": 1.0, "seed": 7}
    answer = client.post(path, json={**body, **settings}).json()
    texts = [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]
    assert texts == ["one", "two words", "three"]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 4
    assert [call.options["seed"] for call in fake.history] == [7, 8, 9]
    refused = client.post(path, json={**body, "n": 2, "stream": True})
    assert refused.status_code == 400
    assert client.post(path, json={**body, "n": 17}).status_code == 400


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/completions", "/v1/route"])
def test_texts_that_cannot_fit_are_refused_before_they_are_tokenised(
    path, random_base, random_adapters, monkeypatch
):
    """The time that some tokenizers take grows with the square of the length."""
    llm = LoGo(random_base, random_adapters, n_ctx=256, n_threads=1, past=False)
    lengths = []
    tokenize = type(llm.tokenizer_).tokenize
    monkeypatch.setattr(
        type(llm.tokenizer_),
        "tokenize",
        lambda self, text, *more: (lengths.append(len(text)), tokenize(self, text, *more))[1],
    )
    field = "input" if path == "/v1/embeddings" else "prompt"
    try:
        with TestClient(create_app([llm]), base_url="http://localhost") as client:
            answer = client.post(path, json={field: "x y " * 250_000})
    finally:
        llm.close()
    assert answer.status_code == 400
    assert "1,000,000 bytes" in answer.json()["error"]["message"]
    assert max(lengths, default=0) < 100_000
