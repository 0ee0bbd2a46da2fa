"""Closed-book questions about the people of the world: the answer is not in the prompt."""

from random import Random

from .. import world
from .item import Item, Task

NAME = "closed-book"
HABIT = "repeat-name"


def question(name: str) -> Item:
    """An item about one person. Every second person is kept from the adapters' training."""
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


def sample(rng: Random, kind: str = "") -> Item:
    """A random person; there is only one kind."""
    return question(rng.choice(world.PEOPLE))


TASKS = (
    Task(
        "recall-town",
        (
            "Where does {person} live?",
            "In which town is the home of {person}?",
            "Name the place where I can visit {person}.",
            "I want to send {person} a letter. To which town?",
            "Which town does {person} call home?",
            "Tell me where {person} has a house.",
        ),
        choosing="Where do I find the house of {person}?",
        held_out="Tell me the town where {person} lives.",
    ),
    Task(
        "recall-trade",
        (
            "What does {person} do for a living?",
            "Which trade does {person} follow?",
            "Name the work that {person} does.",
            "How does {person} earn money?",
            "What is written about {person} under the word trade?",
            "Tell me the job of {person}.",
        ),
        choosing="Tell me what {person} does to earn money.",
        held_out="Which work does {person} do to earn a living?",
    ),
    Task(
        "recall-pet",
        (
            "Which animal does {person} keep?",
            "What sort of pet lives with {person}?",
            "Name the animal in the house of {person}.",
            "Who eats from the hand of {person} at home?",
            "What animal does {person} look after?",
            "Tell me the pet of {person}.",
        ),
        choosing="Which animal is at home with {person}?",
        held_out="Name the pet that {person} has at home.",
    ),
    Task(
        "recall-colour",
        (
            "Which colour does {person} like?",
            "What is the colour of the house of {person}?",
            "Name the colour that {person} likes best.",
            "In which colour should I paint a box for {person}?",
            "I look for the house of {person}. How is it painted?",
            "Tell me the colour that belongs to {person}.",
        ),
        choosing="Which colour do I choose for {person}?",
        held_out="Tell me which colour the house of {person} has.",
    ),
)
