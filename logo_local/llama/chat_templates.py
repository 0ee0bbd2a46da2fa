"""Chat templates: handles those that jinja cannot compile, and passes settings to templates."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

from ..errors import PromptError

log = logging.getLogger(__name__)

# Variables that llama_cpp itself passes to a template.
_OWN = frozenset(
    {"messages", "functions", "function_call", "tools", "tool_choice", "add_generation_prompt"}
    | {"eos_token", "bos_token", "raise_exception", "strftime_now"}
)
_PREFIX = "tokenizer.chat_template"  # further templates have a suffix ".NAME"


def with_usable_templates(metadata: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a model, with each invalid template replaced by one that raises the reason.

    llama_cpp compiles every template when it opens the model. With the replacement, the model can
    be opened, prompts without a template work, and a conversation raises an explanation.
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
            # JSON strings are valid in jinja if no tag can begin in them.
            text = json.dumps(reason).replace("{", "(").replace("}", ")")
            usable[key] = f"{{{{ raise_exception({text}) }}}}"
    return usable


class _Formatter(Jinja2ChatFormatter):  # type: ignore[misc]
    """llama_cpp's formatter, which also passes `settings` to the template."""

    settings: Mapping[str, Any]

    def __call__(self, **given: Any) -> Any:
        return super().__call__(**{**self.settings, **given})


def handler_with(llama: Llama, settings: Mapping[str, Any]) -> Any:
    """A llama_cpp chat handler that passes `settings` to the model's template.

    Raises PromptError if the model has no template, or a setting has a name that llama_cpp uses.
    """
    template = llama.metadata.get(_PREFIX)
    own = [name for name in settings if name in _OWN or not name.isidentifier()]
    if template is None or own:
        why = f"cannot set {', '.join(own)}" if own else "there is no chat template"
        raise PromptError(f"chat_template_kwargs: {why}", hint="leave them out")
    ids = {"eos": llama.token_eos(), "bos": llama.token_bos()}
    tokens = {
        name: llama._model.token_get_text(number) if number != -1 else ""
        for name, number in ids.items()
    }
    formatter = _Formatter(
        template, eos_token=tokens["eos"], bos_token=tokens["bos"], stop_token_ids=[ids["eos"]]
    )
    formatter.settings = dict(settings)
    return formatter.to_chat_handler()


class UsableTemplates:
    """The attribute `metadata`, which llama_cpp sets; see `with_usable_templates`."""

    def __get__(self, llama: Any, _owner: type) -> dict[str, str]:
        found: dict[str, str] = llama.__dict__["metadata"]
        return found

    def __set__(self, llama: Any, metadata: dict[str, str]) -> None:
        llama.__dict__["metadata"] = with_usable_templates(metadata)
