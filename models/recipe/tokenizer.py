"""The tokenizer: byte-level BPE in the manner of GPT-2, in which every word is one token."""

from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .chat_format import BOS, CHAT_TEMPLATE, END, SPECIALS
from .corpus import base_document

VOCABULARY = 2048
DOCUMENTS = 40_000
CONTEXT = 512  # tokens, that the model is made for


def train_tokenizer(out: Path, seed: int) -> None:
    """Train on a sample of the base's text and save in Hugging Face's format to folder `out`."""
    rng = Random(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    texts = ("".join(text for text, _ in base_document(rng, chatter=0.0)) for _ in range(DOCUMENTS))
    tokenizer.train_from_iterator((_without_specials(text) for text in texts), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=[special for special in SPECIALS if special not in (BOS, END)],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(out)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in `folder`."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _without_specials(text: str) -> str:
    for special in SPECIALS:
        text = text.replace(special, "")
    return text
