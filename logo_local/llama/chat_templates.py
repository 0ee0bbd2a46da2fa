"""Chat templates that jinja cannot compile, which must not make the model itself unusable."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

log = logging.getLogger(__name__)

_PREFIX = "tokenizer.chat_template"  # with a name behind a dot for further ones


def with_usable_templates(metadata: Mapping[str, str]) -> dict[str, str]:
    """The keys of a model, where a template that cannot be compiled raises that reason when used.

    llama_cpp compiles every template when it opens the model. With the replacement the model opens,
    prompts without a template work, and a conversation is an error that says why.
    """
    usable = dict(metadata)
    for key, template in metadata.items():
        if key != _PREFIX and not key.startswith(f"{_PREFIX}."):
            continue
        try:
            Jinja2ChatFormatter(template, eos_token="", bos_token="")
        except (TemplateError, RecursionError, ValueError, TypeError) as error:
            reason = f"it cannot be compiled: {type(error).__name__}: {error}"
            log.warning("the chat template of the model cannot be used: %s", reason)
            # JSON's strings are jinja's, too, once no tag can begin in them.
            text = json.dumps(reason).replace("{", "(").replace("}", ")")
            usable[key] = f"{{{{ raise_exception({text}) }}}}"
    return usable


class UsableTemplates:
    """The attribute `metadata`, which llama_cpp sets: see `with_usable_templates`."""

    def __get__(self, llama: Any, _owner: type) -> dict[str, str]:
        found: dict[str, str] = llama.__dict__["metadata"]
        return found

    def __set__(self, llama: Any, metadata: dict[str, str]) -> None:
        llama.__dict__["metadata"] = with_usable_templates(metadata)
