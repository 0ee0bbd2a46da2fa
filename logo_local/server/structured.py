"""JSON answers: convert schemas and tools of a request to grammars that llama.cpp accepts.

llama_cpp converts schemas itself, but accepts any JSON if it fails, and would fetch a schema from
the network; and a grammar that llama.cpp cannot parse ends the process. So each schema is checked
here before an engine uses it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ..completions import Engine
from ..files.text_file import is_encodable
from .failures import RequestError
from .patterns import rules_of

_MAX_BYTES = 64 * 1024  # of a schema
_MAX_NAME = 128  # characters of a property name: many rules contain it
_MAX_REPEATS = 1000  # per item, since repetitions are expanded; ten times as many per schema
_MAX_PATTERN = 256  # characters
_PATIENCE = 10.0  # seconds for one token of an answer with a grammar
_MAX_WAYS = 4096  # alternatives for one place: llama.cpp tries all of them for every token
_MOST = 10**9  # counting stops here
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength")
# Keywords whose values are schemas, by name or in a list or alone; other values are not.
_BY_NAME = ("properties", "$defs", "definitions", "patternProperties")
_OWN_RULES = frozenset(  # rule names of llama_cpp's converter; definitions must not reuse them
    {"string", "number", "integer", "boolean", "null", "array", "object", "value", "root", "dot"}
    | {"char", "space", "integral-part", "decimal-part", "uuid", "date", "time", "date-time"}
)


def grammar_for(schema: Mapping[str, Any], param: str) -> Any:
    """The `LlamaGrammar` of a JSON schema; RequestError, naming `param`, if there is none."""
    from llama_cpp.llama_grammar import LlamaGrammar

    try:
        text = json.dumps(schema)
        if len(text) > _MAX_BYTES:
            raise _refused(param, f"it has {len(text)} bytes, and may have {_MAX_BYTES}")
        _check(schema, param)
        rules = _converted(text)
        # The converter accepts some numbers unchecked: rules that are too long are refused.
        if len(rules) > 16 * _MAX_BYTES or not _parses(rules):
            raise _refused(param, "llama.cpp has no grammar for it")
    except RequestError:
        raise
    except RecursionError:
        raise _refused(param, "it is nested too deeply") from None
    except KeyError as error:
        raise _refused(param, f"llama_cpp cannot follow the reference {error}") from None
    except Exception as error:  # AssertionError, KeyError and others, for incomplete schemas
        raise _refused(param, str(error) or type(error).__name__) from error
    return LlamaGrammar.from_string(rules, verbose=False)


def _converted(schema: str) -> str:
    """llama_cpp's rules for a schema, with patterns converted by `patterns`."""
    from llama_cpp.llama_grammar import SchemaConverter

    class Converter(SchemaConverter):  # type: ignore[misc]  # llama_cpp comes without types
        def _visit_pattern(self, pattern: str, name: str) -> str:
            own = f"pattern{len(self._rules)}"  # a name that no other rule has
            while own in self._rules:
                own += "-"
            self._rules |= rules_of(pattern, own)
            return str(self._add_rule(name, own))

    converter = Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    converter.visit(converter.resolve_refs(json.loads(schema), "stdin"), "")
    return str(converter.format_grammar())


class Patience:
    """Ends an answer whose grammar makes a token too slow, through the engine's `should_stop`.

    The alternatives of a schema can grow with the answer, for example in nested objects of several
    kinds. llama.cpp cannot be interrupted within a token, but the next one is not started.
    """

    def __init__(self, llm: Engine) -> None:
        self._llm, self._before = llm, llm.should_stop
        self._last: float | None = None  # time of the last token

    def __call__(self) -> bool:
        """Whether the answer should end; called before every token."""
        now = time.monotonic()
        last, self._last = self._last, now
        begun = self._llm.usage.get("completion_tokens", 0) > 1  # do not count the prompt's time
        return self._before() or (begun and last is not None and now - last > _PATIENCE)


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
        if len(str(part.get("pattern", ""))) > _MAX_PATTERN:
            raise _refused(param, f"a pattern may have {_MAX_PATTERN} characters at most")
        values = [part["const"]] if "const" in part else part.get("enum") or []
        if "\\" in json.dumps(values):
            raise _refused(param, "llama.cpp has no grammar for quotes and backslashes in values")
    if total > 10 * _MAX_REPEATS:
        raise _refused(param, f"its counts are more than {10 * _MAX_REPEATS} in all")
    ways = _Ways(schema)
    if any(ways.of(part) > _MAX_WAYS for part in _parts(schema)):
        raise _refused(param, "it has too many alternatives for one place")


class _Ways:
    """Counts the alternatives that a schema allows at one place, following its references.

    Alternatives are added, and each reference counts again: thirty definitions that refer twice to
    the next one are 2^30 alternatives, all of which llama.cpp would expand. An object or a list
    has one alternative at a time; a nested list counts several times, because one token may begin
    several lists.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema
        self._by_reference: dict[str, int] = {}
        self._open: set[str] = set()
        self._recursive: set[str] = set()

    def of(self, part: Any) -> int:
        """The alternatives of a part of the schema, at most `_MOST`."""
        if not isinstance(part, Mapping):
            return 1
        ways = self._referenced(str(part["$ref"])) if "$ref" in part else 0
        for name in ("anyOf", "oneOf", "allOf"):
            ways += sum(map(self.of, _list(part.get(name))))
        items = [*_list(part.get("items")), *_list(part.get("prefixItems"))]
        ways += max(map(self.of, items), default=0) + len(_list(part.get("type")))
        return min(_MOST, max(1, ways))

    def _referenced(self, reference: str) -> int:
        if reference in self._open:
            self._recursive.add(reference)
            return 1
        if reference not in self._by_reference:
            self._open.add(reference)
            target: Any = self._schema
            for name in reference.split("/")[1:]:
                target = target.get(name) if isinstance(target, Mapping) else None
            ways = self.of(target)
            self._by_reference[reference] = ways**4 if reference in self._recursive else ways
            self._open.remove(reference)
        return min(_MOST, self._by_reference[reference])


def _list(value: Any) -> list[Any]:
    """A value or a list of values as a list; empty for None."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _check_reference(reference: str, definitions: dict[str, str], param: str) -> None:
    if not reference.startswith("#/"):
        raise _refused(param, f"$ref {reference!r} leads out of the schema")
    name = reference.rpartition("/")[2]
    if name in _OWN_RULES or definitions.setdefault(name, reference) != reference:
        raise _refused(param, f"the definition in {reference} needs another name")


def _parts(schema: Any) -> Iterator[Mapping[str, Any]]:
    """A schema and all schemas within it, without property names and values."""
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
    """Whether llama.cpp can parse a grammar; needs no model as long as nothing is sampled."""
    import llama_cpp

    sampler = llama_cpp.llama_sampler_init_grammar(None, rules.encode(), b"root")
    if not sampler:
        return False
    llama_cpp.llama_sampler_free(sampler)
    return True


def _refused(param: str, why: str) -> RequestError:
    return RequestError(f"the schema in {param} cannot be used: {why}", param=param)
