"""The base model for training: its GGUF weights in PyTorch, its tokens as in llama.cpp.

Adapters are trained on the dequantised weights of the same file, and with the same tokens, as at
runtime, so there is no difference between training and use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from llama_cpp import Llama
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from transformers import AutoConfig, AutoModelForCausalLM

RAW_SUFFIX = "\nAnswer:"  # after a prompt if the model has no chat template


def load_weights(gguf: Path) -> Any:
    """A new causal language model with the file's dequantised weights, in bfloat16."""
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = AutoConfig.for_model(loaded.config.model_type, **_plain(loaded.config.to_dict()))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    return model.to(torch.bfloat16)


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without information about the file they came from."""
    dropped = ("model_type", "_name_or_path", "transformers_version", "quantization_config")
    return {key: value for key, value in config.items() if key not in dropped}


class Tokens:
    """Prompts and answers as tokens, with the tokenizer and chat template of a GGUF file."""

    def __init__(self, gguf: Path) -> None:
        self._llama = Llama(str(gguf), vocab_only=True, verbose=False)
        self._eos: int = self._llama.token_eos()
        template = self._llama.metadata.get("tokenizer.chat_template")
        self.has_template = template is not None
        if template is not None:
            bos = self._llama.token_bos()
            self._format = Jinja2ChatFormatter(
                template=template,
                eos_token=self._text(self._eos),
                bos_token=self._text(bos) if bos >= 0 else "",
            )

    def context(self, prompt: str) -> str:
        """`prompt` as given to the runtime: unchanged, or with a suffix for a raw prompt."""
        return prompt if self.has_template else prompt + RAW_SUFFIX

    def encode(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt up to its answer, and of the answer with the end of text."""
        if self.has_template:
            rendered = self._format(messages=[{"role": "user", "content": prompt}])
            head = self._llama.tokenize(rendered.prompt.encode(), add_bos=False, special=True)
            return head, [*self._llama.tokenize(answer.encode(), False, False), self._eos]
        head = self._llama.tokenize(self.context(prompt).encode(), add_bos=True)
        return head, [*self._llama.tokenize(f" {answer}".encode(), False, False), self._eos]

    def _text(self, token: int) -> str:
        return str(self._llama._model.token_get_text(token))
