"""Prompts outside the pool: sets without an adapter, which the base answers by itself.

Some are related to tasks of the pool, some are not, one is plain continuation. Routing must do
no harm to them. The base is trained to answer them rightly, in their own wordings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .. import world
from .item import Item, one_in_eight

ORDER = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class OutsideSet:
    """A set of prompts and answers; `group` is "related", "unrelated" or "continuation".

    The last of the `wordings` is kept for evaluation, where there is more than one.
    """

    name: str
    group: str
    wordings: tuple[str, ...]
    sampler: Callable[[Random], Item]

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


SETS = (
    OutsideSet(
        "first-word",
        "related",
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
        "related",
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
        "related",
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
