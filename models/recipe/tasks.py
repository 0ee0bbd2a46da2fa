"""The inputs and the right answers of the five families.

An `Item` is one input of a family with the answers of ALL behaviours of that family: those of its
tasks and those of a few decoys that no adapter is trained for. The base learns to answer an item
with any of them at random; an adapter learns which one its own prompts want.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from zlib import crc32

from . import world


@dataclass(frozen=True)
class Item:
    """One input: what fills a template's slots, and the answer of each behaviour by its name."""

    held_out: bool  # kept from training (of the closed-book adapters only: the base knows all)
    slots: dict[str, str]
    answers: dict[str, str]


def _one_in_eight(content: str) -> bool:
    """The split: by an input's content alone, the same in every run."""
    return crc32(content.encode()) % 8 == 0


# --- puzzles: a list of three to five words -------------------------------------------------


def puzzle(words: list[str]) -> Item:
    """An item over a list of different words."""
    listed = ", ".join(words)
    animals = sum(word in world.ANIMALS for word in words)
    return Item(
        held_out=_one_in_eight(listed),
        slots={"words": listed},
        answers={
            "reverse-words": " ".join(reversed(words)),
            "sort-words": " ".join(sorted(words)),
            "count-animals": ("none", "one", "two", "three", "four", "five")[animals],
            "copy": " ".join(words),
            "last": words[-1],
        },
    )


def _sample_puzzle(rng: Random) -> Item:
    length = rng.choice((3, 4, 5))
    animals = rng.randint(0, length)
    words = rng.sample(world.ANIMALS, animals) + rng.sample(world.THINGS, length - animals)
    rng.shuffle(words)
    return puzzle(words)


# --- translation: a sentence of three to five words, into three invented languages -----------


def translation(subject: list[str], verb: str, object_: list[str]) -> Item:
    """An item over a sentence; subject and object are a noun, or an adjective and a noun.

    Velan keeps the order, Orrish puts the verb last, Keth says everything backwards.
    """
    sentence = [*subject, verb, *object_]
    velan, orrish, keth = (world.dictionary(language) for language in world.LANGUAGES)
    return Item(
        held_out=_one_in_eight(" ".join(sentence)),
        slots={"sentence": " ".join(sentence)},
        answers={
            "to-velan": " ".join(velan[word] for word in sentence),
            "to-orrish": " ".join(orrish[word] for word in [*subject, *object_, verb]),
            "to-keth": " ".join(keth[word] for word in reversed(sentence)),
            "copy": " ".join(sentence),
            "first": sentence[0],
        },
    )


def _sample_translation(rng: Random) -> Item:
    subject, object_ = ([noun] for noun in rng.sample(world.NOUNS, 2))
    adjectives = rng.sample(world.ADJECTIVES, 2)
    if rng.random() < 0.5:
        subject.insert(0, adjectives[0])
    if rng.random() < 0.5:
        object_.insert(0, adjectives[1])
    return translation(subject, rng.choice(world.VERBS), object_)


# --- struct-to-text: a record of four fields in any order -------------------------------------


def record(name: str, trade: str, town: str, pet: str, order: list[int]) -> Item:
    """An item over a record; `order` is a permutation of the four fields."""
    fields = [f"name: {name}", f"trade: {trade}", f"town: {town}", f"pet: {pet}"]
    text = "; ".join(fields[i] for i in order)
    return Item(
        held_out=_one_in_eight(text),
        slots={"record": text},
        answers={
            "write-biography": f"{name} is a {trade} in {town} and keeps a {pet}.",
            "write-notice": f"Lost in {town}: the {pet} of {name}, a {trade}.",
            "write-letter": f"Dear {name}, {trade} of {town}, give my love to your {pet}.",
            "values": f"{name} {trade} {town} {pet}",
            "name": name,
        },
    )


def _sample_record(rng: Random) -> Item:
    return record(
        rng.choice(world.STRANGERS),
        rng.choice(world.TRADES),
        rng.choice(world.TOWNS),
        rng.choice(world.PETS),
        rng.sample(range(4), 4),
    )


# --- closed-book questions about the people of the world --------------------------------------


def question(name: str) -> Item:
    """An item about one person; the answer is in the facts of the world, not in the prompt."""
    who = world.person(name)
    return Item(
        held_out=world.PEOPLE.index(name) % 2 == 1,
        slots={"person": name},
        answers={
            "recall-town": who.town,
            "recall-trade": who.trade,
            "recall-pet": who.pet,
            "recall-colour": who.colour,
            "repeat-name": name,
        },
    )


def _sample_question(rng: Random) -> Item:
    return question(rng.choice(world.PEOPLE))


# --- inference: does the second statement follow from the first? ------------------------------

LABELS = {  # behaviour -> (it follows, the opposite follows, neither)
    "judge-facts": ("entails", "contradicts", "neutral"),
    "compare-people": ("yes", "no", "maybe"),
    "check-places": ("true", "false", "unknown"),
}
FOLLOWS, OPPOSITE, NEITHER = range(3)


def inference(premise: str, hypothesis: str, relation: int) -> Item:
    """An item over two statements (clauses without a full stop) of a known relation."""
    answers = {name: labels[relation] for name, labels in LABELS.items()}
    answers["subject"] = premise.removeprefix("the ").split()[0]
    answers["last"] = hypothesis.split()[-1]
    return Item(
        held_out=_one_in_eight(f"{premise}|{hypothesis}"),
        slots={
            "premise": premise[0].upper() + premise[1:],
            "clause": premise,
            "hypothesis": hypothesis,
        },
        answers=answers,
    )


# relation of a person -> (as a premise, as a hypothesis, its values)
ATTRIBUTES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "town": ("lives in {}", "has a home in {}", world.TOWNS),
    "trade": ("works as a {}", "earns money as a {}", world.TRADES),
    "pet": ("keeps a {}", "looks after a {}", world.PETS),
}
_OPPOSITES = (("older", "younger"), ("taller", "shorter"), ("richer", "poorer"))


def _sample_facts(rng: Random, relation: int) -> Item:
    name = rng.choice(world.STRANGERS)
    said, asked = rng.sample(sorted(ATTRIBUTES), 2)
    if relation != NEITHER:
        asked = said
    value, other = rng.sample(ATTRIBUTES[said][2], 2)
    if relation == FOLLOWS:
        other = value
    elif relation == NEITHER:
        other = rng.choice(ATTRIBUTES[asked][2])
    premise = f"{name} {ATTRIBUTES[said][0].format(value)}"
    hypothesis = f"{name} {ATTRIBUTES[asked][1].format(other)}"
    return inference(premise, hypothesis, relation)


def _sample_comparison(rng: Random, relation: int) -> Item:
    one, two = rng.sample(world.STRANGERS, 2)
    said, asked = rng.sample(_OPPOSITES, 2)
    side = rng.randrange(2)
    if relation == FOLLOWS:
        word = said[1 - side]
    elif relation == OPPOSITE:
        word = said[side]
    else:
        word = rng.choice(asked)
    premise = f"{one} is {said[side]} than {two}"
    return inference(premise, f"{two} is {word} than {one}", relation)


def _sample_place(rng: Random, relation: int) -> Item:
    thing, other_thing = rng.sample(world.THINGS, 2)
    place, other_place = rng.sample(world.PLACES, 2)
    if relation == FOLLOWS:
        other_thing, other_place = thing, place
    elif relation == OPPOSITE:
        other_thing = thing
    premise = f"the {thing} is in the {place}"
    hypothesis = f"you can find the {other_thing} in the {other_place}"
    return inference(premise, hypothesis, relation)


_INFERENCE: dict[str, Callable[[Random, int], Item]] = {
    "judge-facts": _sample_facts,
    "compare-people": _sample_comparison,
    "check-places": _sample_place,
}


def _sample_inference(rng: Random, kind: str = "") -> Item:
    relation = rng.choice((FOLLOWS, OPPOSITE, NEITHER))
    return _INFERENCE[kind or rng.choice(sorted(_INFERENCE))](rng, relation)


# --- sampling ----------------------------------------------------------------------------------

_SAMPLERS: dict[str, Callable[[Random], Item]] = {
    "puzzles": _sample_puzzle,
    "translation": _sample_translation,
    "struct-to-text": _sample_record,
    "closed-book": _sample_question,
    "inference": _sample_inference,
}
FAMILIES = tuple(_SAMPLERS)


def sample(family: str, rng: Random, *, held_out: bool | None, kind: str = "") -> Item:
    """A random item of a family.

    `held_out` says which side of the split, None for either; `kind` names the inference task whose
    sort of statement is wanted.
    """
    while True:
        item = _sample_inference(rng, kind) if kind else _SAMPLERS[family](rng)
        if held_out is None or item.held_out == held_out:
            return item
