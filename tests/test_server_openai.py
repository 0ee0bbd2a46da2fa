"""The real `openai` client against a real server with the small model."""

import json

import openai
import pytest
from serving import serving
from small_model import ADAPTERS, MODEL

from logo_local.engine import LoGo
from logo_local.server.app import create_app
from logo_local.server.middleware import Rules

PROMPT = "Sort flute, cat, frog, hammer from A to Z."
MESSAGES = [{"role": "user", "content": PROMPT}]
SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"enum": ["apple", "pear"]}, "n": {"enum": [1, 2]}},
    "required": ["fruit", "n"],
}


@pytest.fixture(scope="module")
def engine():
    with LoGo(MODEL, ADAPTERS, n_threads=1, n_threads_batch=1, past=False) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(engine):
    with (
        serving(create_app([engine], rules=Rules(api_key="secret"))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as made,
    ):
        yield made


def test_a_chat_completion_is_that_of_a_single_run(client, engine):
    answer = client.chat.completions.create(model="auto", messages=MESSAGES, temperature=0)
    alone = engine.create_chat_completion(messages=MESSAGES, temperature=0, max_tokens=100)
    assert answer.choices[0].message.content == alone["choices"][0]["message"]["content"]
    assert answer.model_extra["logo"]["route"] == alone["logo"]["route"]
    assert answer.model_extra["logo"]["route"]["adapters"][0]["name"] == "sort-words"
    assert answer.usage.completion_tokens == alone["usage"]["completion_tokens"]
    assert answer.choices[0].finish_reason == "stop"


def test_a_streamed_chat_is_the_same_text(client):
    whole = client.chat.completions.create(model="auto", messages=MESSAGES)
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="auto", messages=MESSAGES, stream=True, stream_options=options
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].model_extra["logo"]["route"] == whole.model_extra["logo"]["route"]
    assert chunks[-1].usage == whole.usage


def test_the_clients_own_way_of_streaming(client):
    with client.chat.completions.stream(model="base:sort-words", messages=MESSAGES) as stream:
        for _ in stream:
            pass
        text = stream.get_final_completion().choices[0].message.content
    assert "cat" in text


def test_a_completion_streamed_and_not(client):
    asked = {"model": "auto", "prompt": PROMPT, "max_tokens": 6}
    whole = client.completions.create(**asked)
    parts = client.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert whole.usage.completion_tokens <= 6


def test_a_call_of_a_tool(client):
    tool = {"type": "function", "function": {"name": "pick", "parameters": SCHEMA}}
    named = {"type": "function", "function": {"name": "pick"}}
    for choice in (named, "required"):
        answer = client.chat.completions.create(
            model="auto", messages=MESSAGES, tools=[tool], tool_choice=choice
        )
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "pick"
        assert set(json.loads(call.function.arguments)) == {"fruit", "n"}
        assert answer.choices[0].finish_reason == "tool_calls"
    chunks = list(
        client.chat.completions.create(
            model="auto", messages=MESSAGES, tools=[tool], tool_choice=named, stream=True
        )
    )
    parts = [c.choices[0].delta.tool_calls for c in chunks if c.choices[0].delta.tool_calls]
    text = "".join(part[0].function.arguments for part in parts)
    assert json.loads(text) == json.loads(call.function.arguments)
    with client.chat.completions.stream(
        model="auto", messages=MESSAGES, tools=[tool], tool_choice="required"
    ) as stream:
        for _ in stream:
            pass
        (joined,) = stream.get_final_completion().choices[0].message.tool_calls
    assert (joined.function.name, joined.function.arguments) == ("pick", text)
    assert joined.id.count("call_") == 1
    for whole in (True, False):
        asked = {"model": "auto", "messages": MESSAGES, "tools": [tool], "tool_choice": named}
        cut = client.chat.completions.create(**asked, max_tokens=3, stream=not whole)
        last = cut if whole else list(cut)[-1]
        assert last.choices[0].finish_reason == "length"
    # The conversation goes on with the call and what came of it.
    messages = [
        *MESSAGES,
        answer.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
        {"role": "user", "content": "Thank you"},
    ]
    assert client.chat.completions.create(model="auto", messages=messages, tools=[tool])


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_by_a_schema(client, stream):
    answer = client.chat.completions.create(
        model="auto",
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        stream=stream,
    )
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    value = json.loads(text)
    assert value["fruit"] in ("apple", "pear")
    assert value["n"] in (1, 2)


def test_embeddings_by_the_clients_default_encoding(client):
    found = client.embeddings.create(model="base", input=["pear apple", "pear apple", "x"])
    same, again, other = (row.embedding for row in found.data)
    assert same == pytest.approx(again, abs=1e-5)
    assert sum(a * a for a in same) == pytest.approx(1, abs=1e-5)
    assert sum(a * b for a, b in zip(same, other, strict=True)) < 0.99
    assert found.usage.prompt_tokens > 4


def test_what_is_wrong_is_an_exception_of_its_kind(client):
    assert "base:sort-words" in [model.id for model in client.models.list()]
    assert client.models.retrieve("base:sort-words").id == "base:sort-words"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.chat.completions.create(model="base:nobody", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="does not fit"):
        client.completions.create(model="auto", prompt=[5] * 20_000)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_conversation_under_the_same_adapters_is_not_read_again(client, engine, monkeypatch):
    read = []
    evaluate = type(engine).eval
    monkeypatch.setattr(
        type(engine), "eval", lambda llm, tokens: read.append(len(tokens)) or evaluate(llm, tokens)
    )
    messages = list(MESSAGES)
    for _ in range(2):
        read.clear()
        answer = client.chat.completions.create(model="base:sort-words", messages=messages)
        messages += [
            answer.choices[0].message.model_dump(exclude_none=True),
            {"role": "user", "content": "Sort owl, ant, bee from A to Z."},
        ]
    assert answer.usage.prompt_tokens > 25
    assert read[0] < answer.usage.prompt_tokens / 2
    read.clear()
    client.chat.completions.create(model="base:write-notice", messages=messages[:-2])
    assert read[0] == answer.usage.prompt_tokens


def test_weights_that_make_no_numbers_harm_nobody_else(client):
    before = client.chat.completions.create(model="auto", messages=MESSAGES)
    huge = {
        "lora": dict.fromkeys(("sort-words", "write-notice", "recall-pet", "recall-town"), 100.0)
    }
    with pytest.raises(openai.ConflictError, match="not finite"):
        client.chat.completions.create(model="auto", messages=MESSAGES, extra_body=huge)
    for model in ("base", "auto"):
        after = client.chat.completions.create(model=model, messages=MESSAGES)
        assert after.choices[0].message.content
    assert after.choices[0].message.content == before.choices[0].message.content


def test_options_of_ours_go_through_extra_body(client):
    answer = client.chat.completions.create(
        model="auto", messages=MESSAGES, extra_body={"lora": {"write-notice": 1.0}}
    )
    adapters = answer.model_extra["logo"]["route"]["adapters"]
    assert [adapter["name"] for adapter in adapters] == ["write-notice"]


def test_a_pictures_part_is_refused(client):
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]
    with pytest.raises(openai.BadRequestError, match="messages"):
        client.chat.completions.create(model="auto", messages=[{"role": "user", "content": parts}])


def test_templates_stay_in_their_sandbox(engine):
    """A model's file brings a template, which is a program: it may not reach the interpreter."""
    from jinja2.exceptions import SecurityError
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    formatter = Jinja2ChatFormatter("{{ ''.__class__.__mro__ }}", "</s>", "<s>")
    with pytest.raises(SecurityError):
        formatter(messages=MESSAGES)
