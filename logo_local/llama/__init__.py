"""The llama.cpp layer: loads adapters, sets mixtures on a context, tokenises prompts.

All ctypes code beyond llama_cpp's own API is in `native`.
"""
