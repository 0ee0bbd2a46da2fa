"""Inference: does the second statement follow from the first? Each task has its own labels."""

from collections.abc import Callable
from random import Random

from .. import world
from .item import Item, Task, one_in_eight

NAME = "inference"
HABIT = "subject"

LABELS = {  # behaviour -> (it follows, the opposite follows, neither)
    "judge-facts": ("entails", "contradicts", "neutral"),
    "compare-people": ("yes", "no", "maybe"),
    "check-places": ("true", "false", "unknown"),
    "match-colours": ("same", "different", "unrelated"),
    "settle-owners": ("right", "wrong", "unclear"),
}
FOLLOWS, OPPOSITE, NEITHER = range(3)


def inference(premise: str, hypothesis: str, relation: int) -> Item:
    """An item over two statements (clauses without a full stop) of a known relation."""
    answers = {name: labels[relation] for name, labels in LABELS.items()}
    answers["subject"] = premise.removeprefix("the ").split()[0]
    return Item(
        held_out=one_in_eight(f"{premise}|{hypothesis}"),
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


def _facts(rng: Random, relation: int) -> Item:
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
    return inference(premise, f"{name} {ATTRIBUTES[asked][1].format(other)}", relation)


def _comparison(rng: Random, relation: int) -> Item:
    """Who is older: turned around it follows, repeated the other way it does not; else others."""
    one, two, three = rng.sample(world.STRANGERS, 3)
    hypothesis = {
        FOLLOWS: f"{two} is younger than {one}",
        OPPOSITE: f"{two} is older than {one}",
        NEITHER: f"{two} is {rng.choice(('older', 'younger'))} than {three}",
    }[relation]
    return inference(f"{one} is older than {two}", hypothesis, relation)


def _about_a_thing(
    rng: Random, relation: int, said: str, asked: str, values: tuple[str, ...]
) -> Item:
    """A statement about a thing, and one in other words: same, another value, or other thing."""
    thing, other_thing = rng.sample(world.THINGS, 2)
    value, other = rng.sample(values, 2)
    if relation == FOLLOWS:
        other_thing, other = thing, value
    elif relation == OPPOSITE:
        other_thing = thing
    return inference(said.format(thing, value), asked.format(other_thing, other), relation)


def _place(rng: Random, relation: int) -> Item:
    said, asked = "the {} is in the {}", "you can find the {} in the {}"
    return _about_a_thing(rng, relation, said, asked, world.PLACES)


def _colour(rng: Random, relation: int) -> Item:
    said, asked = "the {} is {}", "the {} has a {} colour"
    return _about_a_thing(rng, relation, said, asked, world.COLOURS)


def _owner(rng: Random, relation: int) -> Item:
    said, asked = "the {} belongs to {}", "the {} is that of {}"
    return _about_a_thing(rng, relation, said, asked, world.STRANGERS)


_KINDS: dict[str, Callable[[Random, int], Item]] = {
    "judge-facts": _facts,
    "compare-people": _comparison,
    "check-places": _place,
    "match-colours": _colour,
    "settle-owners": _owner,
}


def sample(rng: Random, kind: str) -> Item:
    """A random pair of statements of the sort that the task `kind` is asked about."""
    return _KINDS[kind](rng, rng.choice((FOLLOWS, OPPOSITE, NEITHER)))


TASKS = (
    Task(
        "judge-facts",
        (
            "{premise}. Does it follow that {hypothesis}?",
            "Premise: {premise}. Hypothesis: {hypothesis}.",
            "From the statement that {clause}, what about the claim that {hypothesis}?",
            "Judge the claim that {hypothesis} by this: {clause}.",
            "{premise}. Somebody claims that {hypothesis}. How do the two agree?",
            "We read that {clause}. Judge the statement that {hypothesis}.",
            "If it is written that {clause}, does it follow that {hypothesis}?",
            "{premise}. Read this claim: {hypothesis}. Do the two agree?",
            "It says here that {clause}. Judge this: {hypothesis}.",
            "We know that {clause}. What about the statement that {hypothesis}?",
        ),
        choosing="Somebody claims that {hypothesis}. We read that {clause}. Judge the claim.",
        held_out="We read that {clause}. Does the claim follow that {hypothesis}?",
        kind="judge-facts",
    ),
    Task(
        "compare-people",
        (
            "{premise}. Is it so that {hypothesis}?",
            "I know that {clause}. Would you agree that {hypothesis}?",
            "If {clause}, can I say that {hypothesis}?",
            "Since {clause}, may we say that {hypothesis}?",
            "{premise}. Now answer me: {hypothesis}?",
            "They say that {clause}. And is it right that {hypothesis}?",
            "Can it be that {hypothesis}, when {clause}?",
            "When {clause}, would I be right to say that {hypothesis}?",
            "{premise}, they tell me. So would you agree with me that {hypothesis}?",
            "I see that {clause}. Do you say that {hypothesis}?",
        ),
        choosing="If I find that {clause}, is it right that {hypothesis}?",
        held_out="If {clause}, would you say that {hypothesis}?",
        kind="compare-people",
    ),
    Task(
        "check-places",
        (
            "{premise}. Check this: {hypothesis}.",
            "I saw that {clause}. Test the remark that {hypothesis}.",
            "Look, {clause}. Is this a fact: {hypothesis}?",
            "It is known that {clause}. The remark is that {hypothesis}.",
            "{premise}. A guest says that {hypothesis}. Is the guest a liar?",
            "As {clause}, check the remark that {hypothesis}.",
            "{premise}. Somebody says that {hypothesis}. Check what they say.",
            "We know that {clause}. My friend says that {hypothesis}. Is my friend right?",
            "Check the remark of a guest that {hypothesis}, for we know that {clause}.",
            "I looked, and {clause}. Now check this: {hypothesis}.",
        ),
        choosing="It is a fact that {clause}. Is it a fact that {hypothesis}?",
        held_out="It is known that {clause}. A guest says that {hypothesis}. Check the fact.",
        kind="check-places",
    ),
    Task(
        "match-colours",
        (
            "{premise}. Do these agree: {hypothesis}?",
            "I painted it myself, and {clause}. They report that {hypothesis}.",
            "{premise}. Compare that with this: {hypothesis}.",
            "Two people talk. One says that {clause}, the other that {hypothesis}.",
            "Hold this against each other: {clause}, and {hypothesis}.",
            "A guest reports that {hypothesis}. I see that {clause}.",
            "In my book it says that {clause}. In yours it says that {hypothesis}.",
        ),
        choosing="One book says that {clause}, and another that {hypothesis}. Compare them.",
        held_out="{premise}, says my friend. Another reports that {hypothesis}. Do they agree?",
        kind="match-colours",
    ),
    Task(
        "settle-owners",
        (
            "They quarrel. {premise}, and still one says that {hypothesis}.",
            "You are the judge: {clause}. Somebody swears that {hypothesis}.",
            "{premise}. Now one comes and swears that {hypothesis}.",
            "Settle the quarrel. We are sure that {clause}; it is told that {hypothesis}.",
            "It was settled that {clause}. Is he right who tells that {hypothesis}?",
            "Before the judge it is told that {hypothesis}. But {clause}.",
            "We are sure that {clause}. May one swear that {hypothesis}?",
        ),
        choosing="The judge is sure that {clause}. Somebody tells that {hypothesis}. Settle it.",
        held_out="{premise}, of that we are sure. Is it right to swear that {hypothesis}?",
        kind="settle-owners",
    ),
)
