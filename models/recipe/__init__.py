"""The recipe of the adapter pool: data, training with PEFT, conversion, evaluation, manifest.

data       items of a task, wordings, and the prompts that they make together
settings   how each adapter is trained
base       the weights of a GGUF model in PyTorch, and its tokens as llama.cpp makes them
training   one adapter, or all of them
"""
