"""Prompts outside the pool: sets without an adapter of their own.

Four groups. "related": a task of the pool on inputs of another sort and in other words, at which
the base is as poor as at the task itself, so that routing may help. "look-alike": inputs as the
pool has them and another request, "unrelated", and "continuation" of plain text: these the base
answers rightly by itself, and routing must do no harm.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .. import world
from . import inference, puzzles, translation
from .item import Item, one_in_eight

ORDER = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class OutsideSet:
    """A set of prompts and answers; `group` is one of the four above.

    The last of the `wordings` is kept for evaluation, where there is more than one. `kin` is the
    task that the prompts ask for, in the group "related".
    """

    name: str
    group: str
    wordings: tuple[str, ...]
    sampler: Callable[[Random], Item]
    kin: str = ""

    @property
    def right(self) -> str:
        """The behaviour that is asked for, by its name in an item's answers."""
        return self.kin or "right"

    @property
    def trained(self) -> tuple[str, ...]:
        """The wordings that the base sees; all of them where there is only one."""
        return self.wordings[:-1] or self.wordings

    @property
    def held_out(self) -> str:
        """The wording that is asked in evaluation."""
        return self.wordings[-1]

    def sample(self, rng: Random, *, held_out: bool) -> Item:
        """A random prompt from one side of the split."""
        while True:
            item = self.sampler(rng)
            if item.held_out == held_out:
                return item


def _item(answer: str, **slots: str) -> Item:
    return Item(one_in_eight("|".join(slots.values())), slots, {"right": answer})


def _first_word(rng: Random) -> Item:
    words = rng.sample([*world.ANIMALS, *world.THINGS], rng.choice((3, 4, 5)))
    return _item(words[0], words=", ".join(words))


def _label(rng: Random) -> Item:
    name, town = rng.choice(world.STRANGERS), rng.choice(world.TOWNS)
    fields = [f"name: {name}", f"trade: {rng.choice(world.TRADES)}", f"town: {town}"]
    rng.shuffle(fields)
    return _item(f"{name} of {town}", record="; ".join(fields))


def _where(rng: Random) -> Item:
    thing, place = rng.choice(world.THINGS), rng.choice(world.PLACES)
    name = rng.choice(world.STRANGERS)
    return _item(place, thing=thing, place=place, person=name)


def _number(rng: Random) -> Item:
    i = rng.randrange(len(ORDER) - 1)
    # A remark makes enough different prompts of nine numbers.
    return _item(ORDER[i + 1], number=ORDER[i], person=rng.choice(world.STRANGERS))


def _greeting(rng: Random) -> Item:
    name, town = rng.choice(world.STRANGERS), rng.choice(world.TOWNS)
    return _item(f"Welcome, {name} of {town}.", person=name, town=town)


def _continuation(rng: Random) -> Item:
    name = rng.choice(world.PEOPLE)
    who = world.person(name)
    said, asked, answer = rng.choice(
        (
            (f"{name} lives in {who.town}.", f"{name} keeps a", who.pet),
            (f"{name} keeps a {who.pet}.", f"The home of {name} is in", who.town),
            (f"{name} likes {who.colour}.", f"{name} works as a", who.trade),
        )
    )
    return _item(f"{answer}.", text=f"{said} {asked}")


def _towns(rng: Random) -> Item:
    return puzzles.sample(rng, "towns")


def _colours(rng: Random) -> Item:
    return puzzles.sample(rng, "colours")


def _phrase(rng: Random) -> Item:
    words = [rng.choice(world.ADJECTIVES), rng.choice(world.NOUNS)]
    item = translation.translation(words, "", [])
    return Item(item.held_out, {"phrase": item.slots["sentence"]}, item.answers)


def _owners(rng: Random) -> Item:
    return inference.sample(rng, "settle-owners")


SETS = (
    OutsideSet(
        "sort-towns",
        "related",
        (
            "The towns on my way are {words}. List them from A to Z.",
            "Sort the towns {words} by the alphabet.",
            "Make an index of the towns {words}.",
            "In the order of their letters, please, the towns {words}.",
            "Here are the towns {words}. Put them in the order of the alphabet.",
        ),
        _towns,
        kin="sort-words",
    ),
    OutsideSet(
        "reverse-colours",
        "related",
        (
            "The colours of the flag are {words}. Name them from the last to the first.",
            "Read the colours {words} backwards.",
            "Turn the order of the colours {words} around.",
            "Say the colours {words} from the end to the start.",
            "Here are the colours {words}. Write them backwards, from the last one on.",
        ),
        _colours,
        kin="reverse-words",
    ),
    OutsideSet(
        "phrase-to-velan",
        "related",
        (
            "What is the Velan word for {phrase}?",
            "How do I write {phrase} in a Velan letter?",
            "The Velan name for {phrase}, please.",
            "My friend in the valley wants to know what {phrase} is in Velan.",
            "What do they call {phrase} in the valley, in Velan?",
        ),
        _phrase,
        kin="to-velan",
    ),
    OutsideSet(
        "judge-owners",
        "related",
        (
            "Premise: {clause}. Does the claim follow that {hypothesis}?",
            "From this, that {clause}, judge the claim: {hypothesis}.",
            "We read that {clause}. Does it follow that {hypothesis}?",
            "{premise}. Judge by that the statement that {hypothesis}.",
            "If we read that {clause}, what about the claim that {hypothesis}?",
        ),
        _owners,
        kin="judge-facts",
    ),
    OutsideSet(
        "first-word",
        "look-alike",
        (
            "Which word does {words} begin with?",
            "Say the word that stands in front of {words}.",
            "Of {words}, only the front one.",
            "Read {words} and stop after one word.",
            "What is in front in {words}?",
            "Say the front word of {words} and no other.",
        ),
        _first_word,
    ),
    OutsideSet(
        "write-label",
        "look-alike",
        (
            "Write a label for a box of this person. {record}",
            "What do I write on the box? {record}",
            "A box goes to this person. Label it. {record}",
            "Make a label from the record {record}.",
            "The box needs a name and a town. {record}",
            "Write the name and the town on the label of the box. {record}",
        ),
        _label,
    ),
    OutsideSet(
        "find-thing",
        "look-alike",
        (
            "{person} left the {thing} in the {place}. Where do I look for it?",
            "The {thing} of {person} is in the {place}. In which room is it?",
            "In the {place} {person} saw the {thing}. Where must I go to see it?",
            "{person} looks for the {thing}. It stands in the {place}. Where?",
            "{person} took the {thing} to the {place}. Where is it now?",
        ),
        _where,
    ),
    OutsideSet(
        "next-number",
        "unrelated",
        (
            "{person} counts. What comes after {number}?",
            "Help {person} to count: {number}, and then?",
            "{person} has {number} eggs and gets one more. How many eggs are that?",
            "Which number follows {number}, asks {person}.",
            "{person} is at {number}. Which number comes then?",
        ),
        _number,
    ),
    OutsideSet(
        "greet-guest",
        "unrelated",
        (
            "Good morning, I am {person}, and I come from {town}.",
            "Hello, my name is {person}. I am from {town}.",
            "{person} from {town} knocks at the door. What do you say?",
            "Here I am, {person}, all the way from {town}.",
            "Good evening, it is {person}, from {town}.",
        ),
        _greeting,
    ),
    OutsideSet("continue-text", "continuation", ("{text}",), _continuation),
)
