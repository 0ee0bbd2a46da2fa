"""Struct to text: a record of four fields in any order, and what to write from it."""

from random import Random

from .. import world
from .item import Item, Task, one_in_eight

NAME = "struct-to-text"
HABIT = "values"


def record(name: str, trade: str, town: str, pet: str, order: list[int]) -> Item:
    """An item over a record; `order` is a permutation of the four fields."""
    fields = [f"name: {name}", f"trade: {trade}", f"town: {town}", f"pet: {pet}"]
    text = "; ".join(fields[i] for i in order)
    return Item(
        held_out=one_in_eight(text),
        slots={"record": text},
        answers={
            "write-biography": f"{name} is a {trade} in {town} and keeps a {pet}.",
            "write-notice": f"Lost in {town}: the {pet} of {name}, a {trade}.",
            "write-letter": f"Dear {name}, {trade} of {town}, give my love to your {pet}.",
            "write-sign": f"At the sign of the {pet}: {name}, the best {trade} of {town}.",
            "values": f"{name} {trade} {town} {pet}",
            "name": name,
        },
    )


def sample(rng: Random, kind: str = "") -> Item:
    """A random record of a stranger; there is only one kind."""
    return record(
        rng.choice(world.STRANGERS),
        rng.choice(world.TRADES),
        rng.choice(world.TOWNS),
        rng.choice(world.PETS),
        rng.sample(range(4), 4),
    )


TASKS = (
    Task(
        "write-biography",
        (
            "Write a sentence about the life of this person. {record}",
            "Who is this? Tell it in a sentence. {record}",
            "Make a short biography of the record {record}.",
            "Introduce this person to the reader: {record}",
            "From the card {record} write who they are and what they do.",
            "Describe the person in this record. {record}",
        ),
        choosing="Say in a sentence what somebody should know of this person. {record}",
        held_out="Tell the reader in a short sentence who this person is: {record}",
    ),
    Task(
        "write-notice",
        (
            "The pet of this person is lost. Write the notice. {record}",
            "Write what to put on the wall when the animal has run away. {record}",
            "Make a notice for a missing animal from the record {record}.",
            "Help to find the lost pet: {record}",
            "From the card {record} write a poster, for the animal is gone.",
            "Somebody misses an animal. Put up a poster. {record}",
        ),
        choosing="Let people know that this pet has run away. {record}",
        held_out="The animal of this person has run away. Make a poster for the wall: {record}",
    ),
    Task(
        "write-letter",
        (
            "Write a friendly letter to this person. {record}",
            "Send greetings to somebody we know. {record}",
            "Make a greeting for the post from the record {record}.",
            "Begin a letter with a kind word: {record}",
            "From the card {record} write what I can send by post.",
            "I want to greet this person. Write it for me. {record}",
        ),
        choosing="Greet somebody by post, in kind words. {record}",
        held_out="Send a kind letter to the person on this card: {record}",
    ),
    Task(
        "write-sign",
        (
            "Write what stands above the door of the shop. {record}",
            "Paint a sign for the shop of this person. {record}",
            "Make a sign for a door from the record {record}.",
            "What should people read when they come to the shop? {record}",
            "From the card {record} write a sign that brings guests.",
            "This person opens a shop. What shall we paint on the board? {record}",
        ),
        choosing="Let people know where the shop is, with a board above the door. {record}",
        held_out="Paint the board for the shop of the person on this card: {record}",
    ),
)
