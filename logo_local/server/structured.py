"""Answers that must be JSON: schemas and tools from a request, as grammars that llama.cpp accepts.

llama_cpp turns schemas into grammars itself, but takes any JSON where it fails, and would fetch a
schema from the network; and a grammar that llama.cpp cannot parse ends the process. So each is
looked at here, before an engine sees it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..files.text_file import is_encodable
from .failures import RequestError
from .patterns import cost_of

_MAX_BYTES = 64 * 1024  # of a schema
_MAX_NAME = 128  # characters of a property: rules are named by it, again and again
_MAX_REPEATS = 1000  # of one thing, each of which is written out, and of all in a schema ten times
_MAX_PATTERN = 256  # characters
_MAX_WAYS = 4096  # how many ways through a pattern its optional parts make: all are kept in mind
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_BRACES = re.compile(r"\{[\d,]*\}", re.ASCII)
# Where the values are schemas, by name or in a list or alone; what else is there is not.
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_OWN_RULES = frozenset(  # of llama_cpp's converter, which a definition of the name would become
    {"string", "number", "integer", "boolean", "null", "array", "object", "value", "root", "dot"}
    | {"char", "space", "integral-part", "decimal-part", "uuid", "date", "time", "date-time"}
)


def grammar_for(schema: Mapping[str, Any], param: str) -> Any:
    """The `LlamaGrammar` of a JSON schema; RequestError, naming `param`, where there is none."""
    from llama_cpp.llama_grammar import LlamaGrammar, json_schema_to_gbnf

    try:
        text = json.dumps(schema)
        if len(text) > _MAX_BYTES:
            raise _refused(param, f"it has {len(text)} bytes, and may have {_MAX_BYTES}")
        _check(schema, param)
        rules = json_schema_to_gbnf(text)
        # The converter reads some numbers as they come: rules too long are refused like others.
        if len(rules) > 16 * _MAX_BYTES or not _parses(rules):
            raise _refused(param, "llama.cpp has no grammar for it")
    except RequestError:
        raise
    except RecursionError:
        raise _refused(param, "it is nested too deeply") from None
    except Exception as error:  # asserts, KeyErrors: whatever the schema lacks
        raise _refused(param, str(error) or type(error).__name__) from error
    return LlamaGrammar.from_string(rules, verbose=False)


def any_json() -> Any:
    """The `LlamaGrammar` of JSON objects."""
    from llama_cpp.llama_grammar import JSON_GBNF, LlamaGrammar

    return LlamaGrammar.from_string(JSON_GBNF, verbose=False)


def _check(schema: Mapping[str, Any], param: str) -> None:
    total = 0
    definitions: dict[str, str] = {}
    for part in _parts(schema):
        for name in _BY_NAME:
            if isinstance(part.get(name), Mapping) and any(len(n) > _MAX_NAME for n in part[name]):
                raise _refused(param, f"a name in {name} has more than {_MAX_NAME} characters")
        reference = part.get("$ref")
        if reference is not None and not is_encodable(str(reference)):
            raise _refused(param, "a $ref is not text in Unicode")
        if reference is not None:
            _check_reference(str(reference), definitions, param)
        for name in _COUNTS:
            count = part.get(name, 0)
            if not isinstance(count, int) or not 0 <= count <= _MAX_REPEATS:
                raise _refused(param, f"{name} must be a number from 0 to {_MAX_REPEATS}")
            total += count
        total += _check_pattern(str(part.get("pattern", "")), param)
        values = [part["const"]] if "const" in part else part.get("enum") or []
        if "\\" in json.dumps(values):
            raise _refused(param, "llama.cpp has no grammar for quotes and backslashes in values")
    if total > 10 * _MAX_REPEATS:
        raise _refused(param, f"its counts are more than {10 * _MAX_REPEATS} in all")


def _check_reference(reference: str, definitions: dict[str, str], param: str) -> None:
    if not reference.startswith("#/"):
        raise _refused(param, f"$ref {reference!r} leads out of the schema")
    name = reference.rpartition("/")[2]
    if name in _OWN_RULES or definitions.setdefault(name, reference) != reference:
        raise _refused(param, f"the definition in {reference} needs another name")


def _check_pattern(pattern: str, param: str) -> int:
    """The sum of a pattern's counts. RequestError where it is long, or has too many ways."""
    if len(pattern) > _MAX_PATTERN:
        raise _refused(param, f"a pattern may have {_MAX_PATTERN} characters at most")
    try:
        cost = cost_of(pattern)
    except ValueError as error:
        raise _refused(param, f"its pattern cannot be read: {error}") from error
    if any(int(n) > _MAX_REPEATS for n in re.findall(r"\d+", " ".join(_BRACES.findall(pattern)))):
        raise _refused(param, f"a pattern may repeat {_MAX_REPEATS} times at most")
    if cost.ways > _MAX_WAYS:
        raise _refused(param, "its pattern has too many ways to be matched")
    return cost.total


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all within it; names of properties and values are none."""
    if isinstance(schema, list):
        for part in schema:
            yield from _parts(part)
    if not isinstance(schema, Mapping):
        return
    yield schema
    for key, value in schema.items():
        if key in _BY_NAME and isinstance(value, Mapping):
            yield from _parts(list(value.values()))
        elif key not in ("const", "enum", "default", "examples"):
            yield from _parts(value)


def _parses(rules: str) -> bool:
    """Whether llama.cpp can read a grammar, which needs no model as long as nothing is sampled."""
    import llama_cpp

    sampler = llama_cpp.llama_sampler_init_grammar(None, rules.encode(), b"root")
    if not sampler:
        return False
    llama_cpp.llama_sampler_free(sampler)
    return True


def _refused(param: str, why: str) -> RequestError:
    return RequestError(f"the schema in {param} cannot be used: {why}", param=param)
