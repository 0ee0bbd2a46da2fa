"""What llama.cpp answers to the tokens of families.py, for comparison with PEFT."""

import ctypes

import llama_cpp
import numpy as np
from families import TOKENS

from logo_local.llama.mixture import set_adapters
from logo_local.llama.native import load_adapter


def logits_of(llama, path=None):
    """The logits (n_tokens, n_vocab) behind each of TOKENS, under the adapter at `path`."""
    handle = None if path is None else load_adapter(llama.model, path)
    set_adapters(llama.ctx, [handle] if handle else [], [1.0] if handle else [])
    rows = []
    for i in range(len(TOKENS)):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(llama.ctx), True)
        tokens = (llama_cpp.llama_token * (i + 1))(*TOKENS[: i + 1])
        assert llama_cpp.llama_decode(llama.ctx, llama_cpp.llama_batch_get_one(tokens, i + 1)) == 0
        pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
        pointer = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        rows.append(np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy())
    set_adapters(llama.ctx, [], [])
    if handle:
        llama_cpp.llama_adapter_lora_free(handle)
    return np.stack(rows)
