"""What llama.cpp is made to do: adapters in it, mixtures on a context, prompts as its tokens.

All that is ctypes beyond llama_cpp's own API is in `native`.
"""
