"""Lines of bytes as requests: what is understood, and what each mistake is called."""

import io
import json

import pytest
from starlette.testclient import TestClient

from logo_local.fake import FakeLoGo
from logo_local.jsonl import requests as jsonl_requests
from logo_local.jsonl.requests import Line, RequestError, lines_of, parse
from logo_local.server.app import create_app


def reading(*pieces):
    """read(n) that returns these pieces, whatever n is: a pipe has its own mind."""
    left = iter([*pieces, b""])
    return lambda _n: next(left)


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], []),
        ([b"a\nb\n"], [(1, b"a"), (2, b"b")]),
        ([b"a\nb"], [(1, b"a"), (2, b"b")]),
        ([b"a", b"b\nc", b"\n"], [(1, b"ab"), (2, b"c")]),
        ([b"\n  \na\r\n"], [(3, b"a\r")]),
        ([b"12345678\n1\n"], [(1, b"12345678"), (2, b"1")]),
        ([b"123456789\n1\n"], [(1, None), (2, b"1")]),
        ([b"12345", b"6789", b"12345", b"\n1\n"], [(1, None), (2, b"1")]),
        ([b"1\n123456789"], [(1, b"1"), (2, None)]),
        ([b"123456789", b"123456789", b"1"], [(1, None)]),
    ],
)
def test_lines(pieces, lines, monkeypatch):
    monkeypatch.setattr(jsonl_requests, "MAX_LINE", 8)
    assert list(lines_of(reading(*pieces))) == [Line(*line) for line in lines]


def test_lines_of_a_stream_do_not_depend_on_where_it_is_cut():
    text = b"".join(b"%d " % i * (i % 7) + b"\n" for i in range(200))
    expected = [Line(i, line) for i, line in enumerate(text.split(b"\n"), 1) if line.strip()]
    for size in (1, 2, 3, 5, 64, 1000):
        stream = io.BytesIO(text)
        found = list(lines_of(lambda _n, size=size, stream=stream: stream.read(size)))
        assert found == expected


def parsed(text, number=7):
    return parse(Line(number, text.encode() if isinstance(text, str) else text))


@pytest.mark.parametrize(
    ("text", "kind", "fields"),
    [
        ('{"id": 1, "prompt": "hi"}', "prompt", {"id": 1, "prompt": "hi"}),
        ('\ufeff {"id": "a", "prompt": "hi"}\r', "prompt", {"id": "a", "prompt": "hi"}),
        ('{"id": 1, "prompt": "hi", "seed": null}', "prompt", {"id": 1, "prompt": "hi"}),
        ('{"cancel": "a"}', "cancel", {"cancel": "a"}),
        ('{"adapters": true}', "adapters", {"adapters": True}),
        ('{"id": 0, "rescan": true}', "rescan", {"id": 0, "rescan": True}),
        ('{"id": 1, "route": "hi"}', "route", {"id": 1, "route": "hi"}),
    ],
)
def test_requests(text, kind, fields):
    request = parsed(text)
    assert (request.kind, request.line, request.id) == (kind, 7, fields.get("id"))
    assert request.body.model_dump(exclude_unset=True) == fields


SAMPLED = {
    "max_tokens": 1,
    "temperature": 0,
    "top_p": 0.9,
    "min_p": 0.1,
    "repeat_penalty": 1.1,
    "presence_penalty": -1,
    "frequency_penalty": 1,
    "seed": 2**32 - 2,
    "stop": ["\n", "."],
}
EVERYTHING = {"prompt": "hé 🎈", "raw": True, **SAMPLED, "signal": "norm", "top_k": 2}


def test_all_that_a_prompt_can_have():
    body = parsed(json.dumps({"id": 1, **EVERYTHING}, ensure_ascii=False)).body
    assert body.model_dump(exclude_unset=True) == {"id": 1, **EVERYTHING}
    assert body.sampling() == SAMPLED
    assert body.routing() == {"signal": "norm", "top_k": 2}


def test_messages_and_weights():
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    fields = {"id": 1, "messages": messages, "lora": {"x": 1, "y": -0.5}, "stop": "."}
    body = parsed(json.dumps(fields)).body
    assert body.model_dump(exclude_unset=True) == fields
    assert body.routing(body.lora) == {"weights": {"x": 1, "y": -0.5}}


OR_INTEGER = "id: Input should be a valid string or Input should be a valid integer"
WRONG = [  # the line, and what is said of it
    (b"\xff\xfe{}", "not UTF-8"),
    ("nonsense", "not JSON"),
    ("{", "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"id": ' + "1" * 5000 + ', "prompt": "a"}', "not JSON"),
    ('{"id": 1, "prompt": "a", "temperature": NaN}', "NaN is no JSON number"),
    ('{"id": 1, "prompt": "a", "temperature": -Infinity}', "-Infinity is no JSON number"),
    ('{"id": 1, "prompt": "a", "prompt": "b"}', "'prompt' stands in it twice"),
    ("[1]", "it is a JSON array"),
    ("null", "it is a JSON null"),
    ('"text"', "it is a JSON string"),
    ("{}", "this one has none of them"),
    ('{"prompt": "a", "route": "a", "id": 1}', "prompt and route together"),
    ('{"prompt": "a"}', "id: Field required"),
    (
        '{"id": true, "prompt": "a"}',
        OR_INTEGER,
    ),
    ('{"id": null, "prompt": "a"}', "id: Field required"),
    (
        '{"id": 1.5, "prompt": "a"}',
        OR_INTEGER,
    ),
    ('{"id": 1, "prompt": ""}', "prompt: String should have at least 1 character"),
    ('{"id": 1, "prompt": 3}', "prompt: Input should be a valid string"),
    (
        '{"id": 1, "prompt": "\\ud800"}',
        "prompt: Input should be a valid string, unable",
    ),
    ('{"id": 1, "prompt": "a", "max_token": 3}', "max_token: unknown field"),
    (
        '{"id": 1, "prompt": "a", "max_tokens": 0}',
        "equal to 1 or Input should be -1",
    ),
    ('{"id": 1, "prompt": "a", "max_tokens": 2.0}', "max_tokens: Input should be a valid integer"),
    ('{"id": 1, "prompt": "a", "max_tokens": true}', "max_tokens: Input should be a valid integer"),
    (
        '{"id": 1, "prompt": "a", "temperature": -0.1}',
        "temperature: Input should be greater",
    ),
    ('{"id": 1, "prompt": "a", "temperature": "1"}', "temperature: Input should be a valid number"),
    (
        '{"id": 1, "prompt": "a", "temperature": 1e999}',
        "temperature: Input should be a finite",
    ),
    ('{"id": 1, "prompt": "a", "seed": 9223372036854775808}', "seed: Input should be less than"),
    ('{"id": 1, "prompt": "a", "stop": ""}', "stop: String should have at least 1 character or"),
    ('{"id": 1, "prompt": "a", "stop": [1]}', "stop.0: Input should be a valid string"),
    (
        '{"id": 1, "prompt": "a", "signal": "nrom"}',
        "signal: Input should be 'auto', 'each",
    ),
    (
        '{"id": 1, "prompt": "a", "signal": ["norm"]}',
        "signal: Input should be 'auto', 'each",
    ),
    ('{"id": 1, "prompt": "a", "top_k": 0}', "top_k: Input should be greater than or equal to 1"),
    ('{"id": 1, "prompt": "a", "lora": ["x"]}', "lora: Input should be a valid dictionary"),
    ('{"id": 1, "prompt": "a", "lora": {"x": "1"}}', "lora.x: Input should be a valid number"),
    ('{"id": 1, "prompt": "a", "lora": {}, "top_k": 1}', "lora sets the weights"),
    ('{"id": 1, "prompt": "a", "raw": 1}', "raw: Input should be a valid boolean"),
    ('{"id": 1, "messages": []}', "messages: List should have at least 1 item"),
    ('{"id": 1, "messages": ["a"]}', "messages.0: Input should be a valid dictionary"),
    ('{"id": 1, "messages": [{"role": "user", "content": 1}]}', "messages.0.content: Input should"),
    (
        '{"id": 1, "messages": [{"role": "me", "content": "a"}]}',
        "0.role: Input should be 'system'",
    ),
    (
        '{"id": 1, "messages": [{"role": "user", "content": "a"}], "raw": true}',
        "raw: unknown field",
    ),
    ('{"id": 1, "route": "a", "max_tokens": 3}', "max_tokens: unknown field"),
    (
        '{"id": 1, "route": {}}',
        "route: Input should be a valid string or",
    ),
    ('{"adapters": 1}', "adapters: Input should be a valid boolean"),
    ('{"rescan": false}', "rescan: Input should be true"),
    ('{"cancel": 1, "id": 2}', "id: unknown field"),
    ('{"cancel": [1]}', "cancel: Input should be a valid string or"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_mistakes(text, said):
    with pytest.raises(RequestError) as caught:
        parsed(text)
    assert said in str(caught.value)
    assert caught.value.message.startswith("line 7: ")
    assert caught.value.line == 7


def test_a_line_that_is_too_long():
    with pytest.raises(RequestError, match="line 3: it is longer than 16 MiB"):
        parse(Line(3, None))


def test_all_mistakes_are_named_at_once_and_the_id_is_kept():
    with pytest.raises(RequestError) as caught:
        parsed('{"id": "q", "prompt": "", "max_token": 1, "seed": "x"}')
    assert len(caught.value.problems) == 3
    assert caught.value.id == "q"


SHARED = {
    "max_tokens": [-1, 1, 2**31 - 1, 0, -2, 2**31, 1.0, "1", True],
    "temperature": [0, 2, 2.5, -0.1, "1", True],
    "top_p": [0, 1, 1.1, -1],
    "min_p": [0, 1, 1.1, -1],
    "repeat_penalty": [0.5, 10, 0, 11],
    "presence_penalty": [-2, 2, -3, 3],
    "frequency_penalty": [-2, 2, -3, 3],
    "seed": [0, -1, 2**63 - 1, -(2**63), 2**63, 1.5],
    "stop": ["x", ["x"], [], "", [""], ["x"] * 17, "x" * 513, 3],
    "lora": [{}, {"x": 1}, {"x": 101}, {"": 1}, {"x": "1"}, []],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in SHARED.items() for value in values]
)
def test_json_lines_and_the_server_have_the_same_limits_and_messages(name, value):
    """Both used to have a validator of their own: temperature 5 was valid in one of them."""
    message = {"role": "user", "content": "hi"}
    asked = json.dumps({"messages": [message], name: value})
    with TestClient(create_app([FakeLoGo({"x": 1.0})]), base_url="http://localhost") as client:
        answer = client.post("/v1/chat/completions", content=asked)
    try:
        parsed(json.dumps({"id": 1, "messages": [message], name: value}))
        problems = []
    except RequestError as error:
        problems = error.problems
    assert answer.status_code == (400 if problems else 200)
    assert answer.json().get("error", {}).get("problems", []) == list(problems)
