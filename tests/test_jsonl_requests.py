"""Lines of bytes as requests: what is understood, and what each mistake is called."""

import io
import json

import pytest

from logo_local.jsonl import requests as jsonl_requests
from logo_local.jsonl.requests import Line, Request, RequestError, lines_of, parse


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
    ("text", "request_"),
    [
        ('{"id": 1, "prompt": "hi"}', Request("prompt", 7, 1, {"prompt": "hi"})),
        ('\ufeff {"id": "a", "prompt": "hi"}\r', Request("prompt", 7, "a", {"prompt": "hi"})),
        ('{"cancel": "a"}', Request("cancel", 7, None, {"cancel": "a"})),
        ('{"adapters": true}', Request("adapters", 7, None, {"adapters": True})),
        ('{"id": 0, "rescan": true}', Request("rescan", 7, 0, {"rescan": True})),
        ('{"id": 1, "route": "hi"}', Request("route", 7, 1, {"route": "hi"})),
    ],
)
def test_requests(text, request_):
    assert parsed(text) == request_


EVERYTHING = {
    "prompt": "hé 🎈",
    "raw": True,
    "max_tokens": 1,
    "temperature": 0,
    "seed": 2**32 - 2,
    "stop": ["\n", "."],
    "signal": "norm",
    "top_k": 2,
}


def test_all_that_a_prompt_can_have():
    request = parsed(json.dumps({"id": 1, **EVERYTHING}, ensure_ascii=False))
    assert request.fields == EVERYTHING
    assert request.sampling == {
        name: EVERYTHING[name] for name in ("max_tokens", "temperature", "seed", "stop")
    }


def test_messages_and_weights():
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    fields = {"messages": messages, "lora": {"x": 1, "y": -0.5}, "stop": "."}
    assert parsed(json.dumps({"id": 1, **fields})).fields == fields


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
    ('{"prompt": "a"}', "id is missing"),
    ('{"id": true, "prompt": "a"}', "id must be a string or an integer, not boolean"),
    ('{"id": null, "prompt": "a"}', "id must be a string or an integer, not null"),
    ('{"id": 1.5, "prompt": "a"}', "id must be a string or an integer, not number"),
    ('{"id": 1, "prompt": " "}', "prompt is empty"),
    ('{"id": 1, "prompt": 3}', "prompt must be a string, not number"),
    ('{"id": 1, "prompt": "\\ud800"}', "prompt holds half of a surrogate pair"),
    ('{"id": 1, "prompt": "a", "max_token": 3}', "unknown field 'max_token'"),
    ('{"id": 1, "prompt": "a", "max_tokens": 0}', "max_tokens must be an integer from 1"),
    ('{"id": 1, "prompt": "a", "max_tokens": 2.0}', "max_tokens must be an integer from 1"),
    ('{"id": 1, "prompt": "a", "max_tokens": true}', "max_tokens must be an integer from 1"),
    ('{"id": 1, "prompt": "a", "temperature": -0.1}', "temperature must be 0 or more"),
    ('{"id": 1, "prompt": "a", "temperature": "1"}', "temperature must be a number, not string"),
    ('{"id": 1, "prompt": "a", "temperature": 1e999}', "temperature is too large"),
    ('{"id": 1, "prompt": "a", "seed": 4294967295}', "seed must be an integer from 1"),
    ('{"id": 1, "prompt": "a", "stop": ""}', "stop must be a string or an array"),
    ('{"id": 1, "prompt": "a", "stop": [1]}', "stop must be a string or an array"),
    ('{"id": 1, "prompt": "a", "signal": "nrom"}', "signal must be one of auto, each-entropy"),
    ('{"id": 1, "prompt": "a", "signal": ["norm"]}', "signal must be one of auto, each-entropy"),
    ('{"id": 1, "prompt": "a", "top_k": 0}', "top_k must be an integer from 1"),
    ('{"id": 1, "prompt": "a", "lora": ["x"]}', "lora must be an object"),
    ('{"id": 1, "prompt": "a", "lora": {"x": "1"}}', "lora has a weight for 'x' that must be"),
    ('{"id": 1, "prompt": "a", "lora": {}, "top_k": 1}', "no effect beside lora"),
    ('{"id": 1, "prompt": "a", "raw": 1}', "raw must be true or false, not number"),
    ('{"id": 1, "messages": []}', "messages must be an array of messages"),
    ('{"id": 1, "messages": ["a"]}', "messages number 1 must have role and content"),
    ('{"id": 1, "messages": [{"role": "user", "content": ""}]}', "number 1 has a content that is"),
    ('{"id": 1, "messages": [{"role": "me", "content": "a"}]}', "number 1 has a role that is none"),
    ('{"id": 1, "messages": [{"role": "user", "content": "a"}], "raw": true}', "raw has no use"),
    ('{"id": 1, "route": "a", "max_tokens": 3}', "max_tokens has no use beside route"),
    ('{"id": 1, "route": {}}', "route must be a string, not object"),
    ('{"adapters": 1}', "adapters must be true"),
    ('{"cancel": 1, "id": 2}', "id has no use beside cancel"),
    ('{"cancel": [1]}', "cancel must be a string or an integer"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said for _, said in WRONG])
def test_mistakes(text, said):
    with pytest.raises(RequestError) as caught:
        parsed(text)
    assert said in str(caught.value)
    assert caught.value.message.startswith("line 7: ")
    assert (caught.value.line, bool(caught.value.hint)) == (7, True)


def test_a_line_that_is_too_long():
    with pytest.raises(RequestError, match="line 3: it is longer than 16 MiB"):
        parse(Line(3, None))


def test_all_mistakes_are_named_at_once_and_the_id_is_kept():
    with pytest.raises(RequestError) as caught:
        parsed('{"id": "q", "prompt": "", "max_token": 1, "seed": 0}')
    assert len(caught.value.problems) == 3
    assert caught.value.id == "q"
