"""Schemas from strangers: what has a grammar, and what is refused before llama.cpp sees it."""

import re

import pytest

from logo_local.server.failures import RequestError
from logo_local.server.patterns import MOST, cost_of
from logo_local.server.structured import any_json, grammar_for


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
        ({"type": "string", "pattern": "^a{2000}$"}, "1000 times at most"),
        ({"type": "string", "pattern": "^[$"}, "a bracket is not closed"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        ({"type": "string", "pattern": "^" + "a?" * 100 + "$"}, "too many ways"),
        ({"type": "string", "pattern": "^([a-z]{0,99}){0,99}$"}, "too many ways"),
        ({"type": "string", "pattern": "^(a?){1000}$"}, "too many ways"),
        ({"type": "string", "pattern": "^((a|b)*c?){1000}$"}, "too many ways"),
        ({"type": "string", "pattern": "^((a?){30}){30}$"}, "too many ways"),
        (
            {"type": "string", "pattern": "^(" + "|".join("a?" * 2 for _ in range(40)) + "){9}$"},
            "ways",
        ),
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


@pytest.mark.parametrize(
    ("pattern", "ways", "total"),
    [
        ("abc", 1, 0),
        ("a?", 2, 0),
        ("a|b|c", 3, 0),
        ("a{3}", 1, 3),
        ("a{2,4}", 3, 4),
        ("(a?){3}", 8, 3),  # each of the three may be there or not
        ("(ab|c){3}", 6, 3),
        ("(?:a?b?)", 4, 0),
        (r"[a\]?]\?", 1, 0),
        ("(a?){40}", MOST, 40),
        ("((a|b)*c?){1000}", MOST, 1000),
    ],
)
def test_ways_through_a_pattern_by_hand(pattern, ways, total):
    cost = cost_of(pattern)
    assert (cost.ways, cost.total) == (ways, total)


def test_any_json_is_a_grammar_of_its_own():
    assert "root" in any_json()._grammar
