"""Schemas from strangers: what has a grammar, and what is refused before llama.cpp sees it."""

import itertools
import json
import re
import subprocess
import sys

import pytest
import small_model

from logo_local.fake import FakeLoGo
from logo_local.server.failures import RequestError
from logo_local.server.patterns import rules_of
from logo_local.server.structured import Patience, any_json, grammar_for

# As they were published, and what makes the same work in other ways: each stopped an engine for
# minutes a token, or llama.cpp while it read the grammar, and nothing could interrupt that.
DOUBLED = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
IN_ITSELF = {"type": "array", "items": {"$ref": "#/$defs/n"}}
COSTLY = {
    "optional": {"type": "string", "pattern": "^(a?){1000}$"},
    "nested": {"type": "string", "pattern": "^((a|b)*c?){1000}$"},
    "counts": {"type": "string", "pattern": "^((a?){30}){30}$"},
    "counted alternatives": {"type": "string", "pattern": f"^({'|'.join(['[a-z]'] * 20)}){{50}}$"},
    "starred alternatives": {"type": "string", "pattern": f"^({'|'.join(['[-=]'] * 9)})*$"},
    "starred stars": {"type": "string", "pattern": "^([a-z]+[a-z]*)*$"},
    "exponential automaton": {"type": "string", "pattern": "^[ab]*a[ab]{60}$"},
    "in every alternative": {
        "anyOf": [{"type": "string", "pattern": f"^{'([a-z]|[a-y])' * 6}{i}$"} for i in range(300)]
    },
    "a doubled reference": {
        "$defs": {**DOUBLED, "d30": {"type": "integer"}},
        "properties": {"a": {"$ref": "#/$defs/d0"}},
    },
    "lists in themselves": {
        "$defs": {"n": {"anyOf": [{**IN_ITSELF, "maxItems": i} for i in range(1, 40)]}},
        "properties": {"a": {"$ref": "#/$defs/n"}},
    },
    "a large enum": {"enum": [f"value {i}" for i in range(4000)]},
}


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"a": {"enum": ["x", 1, None]}}, "required": ["a"]},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3},
        {"$defs": {"n": {"type": "number"}}, "properties": {"a": {"$ref": "#/$defs/n"}}},
        {"anyOf": [{"const": 1}, {"type": "string", "maxLength": 5}]},
        {"type": "string", "pattern": "^[a-c]{2,4}$"},
        nested(20),
        {"properties": {"minItems": {"type": "integer"}, "maxLength": {"type": "string"}}},
        {"type": "string", "pattern": "^(foo|bar|baz){1,5}$"},
        {"type": "string", "pattern": "^(a|b){1000}$"},
        {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
    ],
)
def test_schemas_that_have_a_grammar(schema):
    assert "root ::=" in grammar_for(schema, "p")._grammar


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "https://example.org/schema"}, "leads out of the schema"),
        ({"properties": {"a": [{"$ref": "file:///etc/passwd"}]}}, "leads out of the schema"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"type": "nothing"}, "nothing"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "no grammar"),
        ({"type": "array", "items": {}, "maxItems": 10**9}, "from 0 to 1000"),
        ({"type": "string", "maxLength": -1}, "from 0 to 1000"),
        ({"type": "string", "minLength": "many"}, "from 0 to 1000"),
        ({"type": "string", "pattern": "^a{2001}$"}, "too large"),
        ({"type": "string", "pattern": "^[$"}, "a bracket is not closed"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        ({"type": "string", "pattern": "^([a-z]{0,99}){0,99}$"}, "too large"),
        ({"type": "string", "pattern": "^((a|b)*c?){1000}$"}, "too large"),
        ({"type": "string", "pattern": "^[ab]*a[ab]{60}$"}, "too many ways"),
        (COSTLY["a doubled reference"], "too many alternatives"),
        (COSTLY["lists in themselves"], "too many alternatives"),
        ({"$defs": {"n": IN_ITSELF}, "$ref": "#/$defs/n"}, "cannot follow the reference"),
        ({"type": "string", "pattern": "^a)$"}, "a bracket is closed"),
        ({"type": "object", "properties": {"a": {"$ref": "#/\ud800"}}}, "not text"),
        ({"type": "string", "pattern": "^[a]{000000000900000000}$"}, "the count"),
        ({"type": "string", "pattern": "^a{+700000000}$"}, "the count"),
        ({"type": "string", "pattern": "^a{7_0_0_0}$"}, "the count"),
        ({"type": "string", "pattern": "^" + "[a]" * 100 + "$"}, "256 characters"),
        ({"properties": {"x" * 200: {}}}, "128 characters"),
        (
            {"properties": {f"p{i}": {"type": "string", "maxLength": 900} for i in range(20)}},
            "in all",
        ),
        ({"$defs": {"string": {"type": "null"}}, "$ref": "#/$defs/string"}, "another name"),
        ({"const": "x\\y"}, "quotes and backslashes"),
        ({"enum": ['a"b']}, "quotes and backslashes"),
        (nested(5_000), "nested too deeply"),
        ({"properties": 3}, "cannot be used"),
    ],
)
def test_schemas_that_are_refused(schema, words, capfd):
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        grammar_for(schema, "response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")


UNREADABLE = [
    ("^a)$", "a bracket is closed"), ("^[$", "a bracket is not closed"), ("^(a$", "not closed"),
    ("a", "must begin"), ("^$x", "must begin"), ("^a{+7}$", "the count"), ("^a{7_0}$", "the count"),
    ("^a{00000900}$", "the count"), ("^a{3,2}$", "the count"), ("^a**$", "a count follows"),
    ("^*$", "nothing that could be repeated"), ("^(?=a)$", "a group with"), ("^a\\b$", "escape"),
    ("^[z-a]$", "the wrong way"), ("^a\\$", "a backslash"), ('^"$', "matches nothing"),
    ("^a^b$", "only possible at its ends"), ("^" + "(" * 60 + ")" * 60 + "$", "too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "words"), UNREADABLE, ids=[words for _, words in UNREADABLE])
def test_patterns_that_cannot_be_read(pattern, words):
    with pytest.raises(ValueError, match=words):
        rules_of(pattern, "p")


def matches(pattern, text):
    """Whether the rules accept `text`; at each character one alternative at most may fit."""
    rules, at = rules_of(pattern, "p"), "p-0"
    for character in text:
        fitting = []
        for way in rules.get(at, "").split(" | "):
            found = re.fullmatch(r"\[(.*)\] (p-\d+)", way)
            if found and re.fullmatch(f"[{found[1]}]", character):
                fitting.append(found[2])
        assert len(fitting) <= 1
        if not fitting:
            return False
        at = fitting[0]
    return rules.get(at, "").endswith('"\\"" space')


PATTERNS = [
    "a*", "(a|ab)(c|bcd)(d*)", "(a?){3}", "((a|b)*c?){3}", "a{2,3}", "a{2,}", "a{0}b", "(ab|c){2}",
    "[^ab]c?", "(?:a|)b", "(a*)*", "((a+)*b?)+", "(a|a)*", ".b", "a+b+|c{1,2}", "(a{0,2}b?){1,2}c",
    r"\w\d?", "(a?b?c?){2}", "(|a)(|b)", "((a{2}){2}|b)c*", "(a{2,}b?){2,}",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_rules_match_what_pythons_own_expressions_match(pattern):
    texts = ["".join(t) for n in range(6) for t in itertools.product("abc1", repeat=n)]
    for text in texts:
        assert matches(f"^{pattern}$", text) == bool(re.fullmatch(pattern, text)), text


def test_the_rules_make_valid_json_of_what_a_pattern_allows():
    """A dot used to allow quotes, which ended the string."""
    assert matches("^.$", "é")
    for character in '"\\\n\x00':
        assert not matches("^.$", character)
        assert not matches("^[^a]$", character)


@pytest.mark.parametrize("schema", COSTLY.values(), ids=COSTLY)
def test_no_schema_keeps_an_engine_busy(schema):
    """It is refused, or its grammar is cheap: the whole answer is there before anybody waits."""
    process = subprocess.run(
        [sys.executable, "-c", SAMPLED, json.dumps(schema), str(small_model.MODEL)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert process.stdout.split()[-1] in ("refused", "answered"), process.stderr


SAMPLED = """
import json, sys
from logo_local.server.failures import RequestError
from logo_local.server.structured import grammar_for
from llama_cpp import Llama
try:
    grammar = grammar_for(json.loads(sys.argv[1]), "p")
except RequestError:
    print("refused")
else:
    llama = Llama(sys.argv[2], n_ctx=256, n_threads=1, verbose=False)
    llama.create_completion("a", grammar=grammar, max_tokens=12, temperature=1.0, seed=1)
    print("answered")
"""


def test_an_answer_ends_when_its_tokens_take_too_long(monkeypatch):
    """Objects of several kinds within each other: what has to be tried grows with every level."""
    now, llm = [0.0], FakeLoGo({})
    monkeypatch.setattr("logo_local.server.structured.time.monotonic", lambda: now[0])
    patience = Patience(llm)
    for tokens, seconds, expected in ((0, 0, False), (1, 99, False), (2, 9, False), (3, 11, True)):
        llm.usage, now[0] = {"completion_tokens": tokens}, now[0] + seconds
        assert patience() == expected
    llm.should_stop = lambda: True
    assert Patience(llm)()


def test_any_json_is_a_grammar_of_its_own():
    assert "root" in any_json()._grammar
