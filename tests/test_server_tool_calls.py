"""Tools that the model chooses to call: found in its text, whole and streamed."""

import json

import pytest
from starlette.testclient import TestClient

from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app
from logo_local.server.tool_calls import Holder, calls_in

CHAT = "/v1/chat/completions"
NAMES = ("weather", "time")
ARGUMENTS = {"city": "Köln"}
CALL = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
TEXTS = {
    "Hermes, Qwen": f"<tool_call>\n{CALL}\n</tool_call>",
    "without its end": f"<tool_call>{CALL}",
    "Llama 3": CALL.replace("arguments", "parameters"),
    "Mistral": f"[TOOL_CALLS] [{CALL}]",
    "Mistral without its mark": f"[{CALL}]",
    "JSON within JSON": json.dumps({"name": "weather", "arguments": json.dumps(ARGUMENTS)}),
}
NO_CALLS = [
    "It is sunny.",
    '{"name": "nobody", "arguments": {}}',
    '{"answer": 42}',
    "[1, 2]",
    "<tool_call>not JSON</tool_call>",
    f"[{CALL}, 7]",
    '{"name": "weather", "arguments"',
    f"Here it is: {CALL}",
    "a < b",
]
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in NAMES
]


@pytest.mark.parametrize("kind", TEXTS)
def test_calls_are_found(kind):
    content, (call,) = calls_in(TEXTS[kind], NAMES)
    assert content == ""
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == ARGUMENTS
    assert call["id"].startswith("call_")


@pytest.mark.parametrize("text", NO_CALLS)
def test_other_text_stays_as_it_is(text):
    assert calls_in(text, NAMES) == (text, [])


def test_text_around_calls_is_kept_and_several_are_found():
    other = '{"name": "time", "arguments": {}}'
    text = f"I look.\n<tool_call>{CALL}</tool_call>\n<tool_call>{other}</tool_call>"
    content, calls = calls_in(text, NAMES)
    assert content == "I look."
    assert [call["function"]["name"] for call in calls] == ["weather", "time"]


@pytest.mark.parametrize("text", [*TEXTS.values(), *NO_CALLS, f"Well. {TEXTS['Hermes, Qwen']}"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_stream_says_what_the_whole_says(text, size):
    holder = Holder(NAMES)
    said = "".join(holder.feed(text[i : i + size]) for i in range(0, len(text), size))
    rest, calls = holder.end()
    expected, expected_calls = calls_in(text, NAMES)
    assert (said + rest).strip() == expected.strip()
    assert [call["function"] for call in calls] == [call["function"] for call in expected_calls]


@pytest.fixture
def fake():
    return FakeLoGo({"a": 1.0}, [["<tool", f"_call>{CALL[:20]}", f"{CALL[20:]}</tool_call>"]])


@pytest.fixture
def client(fake):
    with TestClient(create_app([fake]), base_url="http://localhost") as one:
        yield one


@pytest.mark.parametrize("choice", [None, "auto"])
def test_the_server_answers_with_the_call(client, choice):
    body = {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS, "tool_choice": choice}
    (one,) = client.post(CHAT, json=body).json()["choices"]
    assert one["finish_reason"] == "tool_calls"
    assert one["message"]["content"] is None
    assert one["message"]["tool_calls"][0]["function"]["name"] == "weather"


def test_the_server_streams_the_call(client):
    body = {"messages": [{"role": "user", "content": "?"}], "tools": TOOLS, "stream": True}
    lines = client.post(CHAT, json=body).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas) == ""
    (calls,) = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["index"] == 0
    assert json.loads(calls[0]["function"]["arguments"]) == ARGUMENTS
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_without_tools_or_with_none_it_is_text(client, fake):
    body = {"messages": [{"role": "user", "content": "?"}]}
    for more in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (one,) = client.post(CHAT, json={**body, **more}).json()["choices"]
        assert one["message"]["content"].startswith("<tool_call>")
        assert "tool_calls" not in one["message"]
