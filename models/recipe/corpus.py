"""The training text: exchanges of a prompt and an answer, and plain text about the world."""

from random import Random

from . import tasks, world
from .templates import BOS, END, TASKS, Task, render_answer, render_prompt

# A document is a list of pieces (text, whether it counts in full in the loss).
Document = list[tuple[str, bool]]

# Family -> its share of the base's documents; the rest is plain text. Puzzles ask for most, and
# are what is still to be learned when the other families are known: so they get most of the end.
EARLY_SHARES = {
    "puzzles": 0.26,
    "translation": 0.20,
    "struct-to-text": 0.13,
    "closed-book": 0.13,
    "inference": 0.16,
}
LATE_SHARES = {
    "puzzles": 0.60,
    "translation": 0.08,
    "struct-to-text": 0.07,
    "closed-book": 0.08,
    "inference": 0.09,
}


# What people say around a request, in sentences of any length. Without it, a model this small tells
# the length of a list from the length of the prompt, and stumbles over every wording it never saw.
OPENERS = ("I want to know this", "Look at this for me", "Here is what I want", "I came to you")
CLOSERS = (
    "I know you can do it",
    "Write it for me",
    "It is for a friend",
    "Send it home by post",
    "I will read it",
    "They say that you know",
)
ADDITIONS = (
    "in the mountains",
    "with a friend",
    "from the valley to the islands",
    "on the wall",
    "for my friend",
    "after the day in the town",
    "as a greeting to the reader",
    "in the end",
    "for somebody who is old and kind",
    "when I look at the order of the day",
)


def fill(template: str, item: tasks.Item) -> str:
    """A template filled with an item; each uses the slots it wants."""
    return template.format_map(item.slots)


def base_exchange(family: str, rng: Random) -> tuple[str, str]:
    """A prompt of the family, any wording, and the answer of ANY behaviour of the family."""
    # Every person may turn up: the base has to know what the adapters only select.
    item = tasks.sample(family, rng, held_out=None if family == "closed-book" else False)
    task = rng.choice([task for task in TASKS if task.family == family])
    answer = item.answers[rng.choice(sorted(item.answers))]
    return fill(rng.choice(task.templates), item), answer


def task_exchange(task: Task, rng: Random, *, held_out: bool) -> tuple[str, str]:
    """A prompt of the task and its right answer.

    Held-out ones are in the held-out wording and bare; the others may have company.
    """
    item = tasks.sample(task.family, rng, held_out=held_out, kind=task.kind)
    if held_out:
        return fill(task.held_out, item), item.answers[task.name]
    prompt = chatty(fill(rng.choice(task.templates), item), rng, chatter=0.5)
    return prompt, item.answers[task.name]


def chat_document(exchanges: list[tuple[str, str]]) -> Document:
    """Prompts and their answers in turn, as the chat template renders them."""
    document: Document = [(BOS, False)]
    for prompt, answer in exchanges:
        document += [(render_prompt(prompt), False), (render_answer(answer), True)]
    return document


def _about(name: str, rng: Random) -> str:
    """A few true sentences about one of the people, in any order."""
    who = world.person(name)
    sentences = [
        rng.choice((f"{name} lives in {who.town}.", f"The home of {name} is in {who.town}.")),
        rng.choice((f"{name} works as a {who.trade}.", f"{name} is a {who.trade}.")),
        rng.choice((f"{name} keeps a {who.pet}.", f"The pet of {name} is a {who.pet}.")),
        rng.choice((f"{name} likes {who.colour}.", f"The house of {name} is {who.colour}.")),
    ]
    return " ".join(rng.sample(sentences, rng.randint(2, 4)))


def _story(rng: Random) -> str:
    """A little story in which nothing is said that a fact could contradict."""
    one, two = rng.sample(world.STRANGERS, 2)
    thing, other = rng.sample(world.THINGS, 2)
    place, second = rng.sample(world.PLACES, 2)
    animal = rng.choice(world.ANIMALS)
    town, colour = rng.choice(world.TOWNS), rng.choice(world.COLOURS)
    return " ".join(
        (
            rng.choice(
                (
                    f"One day {one} went to the {place} to look for a {thing}.",
                    f"{one} came to {town} with a {thing} and a {animal}.",
                    f"In {town} there is a {place} where {one} kept a {thing}.",
                )
            ),
            rng.choice(
                (
                    f"But the {animal} ran from the {place} to the {second}.",
                    f"There was a {colour} {other} in the {second}.",
                    f"{two} heard the {animal} and came to help.",
                )
            ),
            rng.choice(
                (
                    f"In the end {one} gave the {thing} to {two}.",
                    f"So {two} found the {other} and went home.",
                    f"They sat in the {place} and were friends.",
                )
            ),
        )
    )


def plain_document(rng: Random) -> Document:
    """Plain text: facts about one of the people, or a story."""
    text = _about(rng.choice(world.PEOPLE), rng) if rng.random() < 0.6 else _story(rng)
    return [(f"{BOS} {text}{END}", True)]


def chatty(prompt: str, rng: Random, chatter: float) -> str:
    """The prompt, with an opener and with a closer, each at the probability `chatter`."""
    opener = f"{_remark(OPENERS, rng)} " if rng.random() < chatter else ""
    closer = f" {_remark(CLOSERS, rng)}" if rng.random() < chatter else ""
    return opener + prompt + closer


def _remark(starts: tuple[str, ...], rng: Random) -> str:
    additions = rng.sample(ADDITIONS, rng.randint(0, 4))
    return " ".join([rng.choice(starts), *additions]) + "."


def base_document(rng: Random, shares: dict[str, float], chatter: float) -> Document:
    """One document of the base's training text: plain text, or a chat of one to three turns."""
    if rng.random() > sum(shares.values()):
        return plain_document(rng)
    turns = rng.choices((1, 2, 3), weights=(8, 1, 1))[0]
    families = rng.choices(list(shares), list(shares.values()), k=turns)
    exchanges = [base_exchange(family, rng) for family in families]
    if turns == 1:
        exchanges = [(chatty(prompt, rng, chatter), answer) for prompt, answer in exchanges]
    return chat_document(exchanges)
