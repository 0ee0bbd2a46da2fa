"""How to build the adapter pool: data, training with PEFT, conversion, evaluation, manifest.

data       items of a task, wordings, and the prompts made from them
settings   training settings of each adapter
base       the weights of a GGUF model in PyTorch, and its tokens as in llama.cpp
training   train one adapter, or all of them
"""
