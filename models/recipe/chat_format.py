"""The chat rendering that all text goes through."""

BOS, END, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (BOS, END, USER, ASSISTANT)

# Every word follows a space, so that a word is the same token wherever it stands.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ ' ' + message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def render_prompt(prompt: str) -> str:
    """What the chat template makes of one user message, without the start of text."""
    return f"{USER} {prompt}{END}{ASSISTANT}"


def render_answer(answer: str) -> str:
    """What follows `render_prompt`, up to the end of the answer."""
    return f" {answer}{END}"
