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

from .failures import RequestError

_MAX_BYTES = 64 * 1024  # of a schema
_MAX_REPEATS = 1000  # llama.cpp takes 2,000 at most, and each is written out
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
_QUANTIFIER = re.compile(r"\{\s*(\d*)\s*,?\s*(\d*)\s*\}")


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
    for part in _parts(schema):
        reference = part.get("$ref")
        if reference is not None and not str(reference).startswith("#/"):
            raise _refused(param, f"$ref {reference!r} leads out of the schema")
        for name in _COUNTS:
            count = part.get(name, 0)
            if not isinstance(count, int) or not 0 <= count <= _MAX_REPEATS:
                raise _refused(param, f"{name} must be a number from 0 to {_MAX_REPEATS}")
        for found in _QUANTIFIER.finditer(str(part.get("pattern", ""))):
            if any(number and int(number[:9]) > _MAX_REPEATS for number in found.groups()):
                raise _refused(param, f"a pattern may repeat {_MAX_REPEATS} times at most")


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object within a JSON value, itself included."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _parts(part)


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
