"""Schemas from strangers: what has a grammar, and what is refused before llama.cpp sees it."""

import re

import pytest

from logo_local.server.failures import RequestError
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
        ({"type": "string", "pattern": "^a{1000000}$"}, "1000 times at most"),
        ({"type": "string", "pattern": "^[$"}, "Unbalanced"),
        ({"enum": ["x" * 70_000]}, "bytes"),
        (nested(5_000), "nested too deeply"),
        ({"properties": 3}, "cannot be used"),
    ],
)
def test_schemas_that_are_refused(schema, words, capfd):
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        grammar_for(schema, "response_format")
    assert (caught.value.status, caught.value.param) == (400, "response_format")


def test_any_json_is_a_grammar_of_its_own():
    assert "root" in any_json()._grammar
