"""The recipe of the bundled model: an invented world, a tokenizer, a base model, its adapters.

`python -m models.recipe` from the top of the repository runs every step in order.
"""
