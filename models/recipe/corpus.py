"""The training text: exchanges of a prompt and an answer, and plain text about the world."""

from collections.abc import Mapping
from random import Random

from . import world
from .chat_format import BOS, END, render_answer, render_prompt
from .families import FAMILIES, FAMILY_OF, SETS, Family, Item, Task, puzzles

# A document is a list of pieces (text, whether it counts in full in the loss).
Document = list[tuple[str, bool]]

# Family -> its share of the base's documents, by how slowly it is learned; "outside" are the sets
# without an adapter, and the rest is plain text.
SHARES = {
    "puzzles": 0.34,
    "translation": 0.18,
    "struct-to-text": 0.07,
    "closed-book": 0.10,
    "inference": 0.12,
    "outside": 0.10,
}
# At the end of the training: more of what is left to learn, which is to copy a name from a record.
LATE_SHARES = {
    "puzzles": 0.30,
    "translation": 0.13,
    "struct-to-text": 0.23,
    "closed-book": 0.05,
    "inference": 0.12,
    "outside": 0.13,
}
# How often the base's text answers a wording by mistake as another one is meant; else any behaviour
# may follow, the right one among them. So the base can do everything, tells the wordings apart, and
# is wrong about what each of them asks for: that is left to the adapters.
MISTAKEN = 0.6
OTHER_LISTS = 0.12  # of the base's lists; the adapters see only lists of animals and things

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


def fill(template: str, item: Item) -> str:
    """A template filled with an item; each uses the slots it wants."""
    return template.format_map(item.slots)


def base_exchange(family: Family, rng: Random) -> tuple[str, str]:
    """A prompt of the family in any wording, and an answer: seldom the one that it asks for."""
    task = rng.choice(family.tasks)
    # Every person may turn up: the base has to know what the adapters only select.
    held_out = None if family.name == "closed-book" else False
    kind = task.kind
    if family.name == "puzzles" and rng.random() < OTHER_LISTS:
        kind = rng.choice(sorted(puzzles.OTHER_LISTS))
    item = family.sample(rng, kind, held_out=held_out)
    return fill(rng.choice(task.templates), item), base_answer(family, task.name, item, rng)


def outside_exchange(rng: Random) -> tuple[str, str]:
    """A prompt of one of the sets without an adapter, and an answer.

    It is the right one, but for sets that are related to a task: those are answered like it.
    """
    outside = rng.choice(SETS)
    item = outside.sample(rng, held_out=False)
    prompt = fill(rng.choice(outside.trained), item)
    if outside.kin:
        return prompt, base_answer(FAMILY_OF[outside.kin], outside.kin, item, rng)
    return prompt, item.answers[outside.right]


def base_answer(family: Family, task: str, item: Item, rng: Random) -> str:
    """What the base's text answers to a wording of `task`."""
    if rng.random() < MISTAKEN:
        return item.answers[family.mistaken(task, item)]
    return rng.choice(list(item.answers.values()))


def task_exchange(task: Task, rng: Random, wording: str = "") -> tuple[str, str]:
    """A prompt of the task and its right answer.

    Without a `wording` it is for training, with or without company. A held-out input in one of
    the task's two untrained wordings is bare.
    """
    item = FAMILY_OF[task.name].sample(rng, task.kind, held_out=bool(wording))
    if wording:
        return fill(wording, item), item.answers[task.name]
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
    additions = rng.sample(ADDITIONS, rng.randint(0, 2))
    return " ".join([rng.choice(starts), *additions]) + "."


def base_document(rng: Random, chatter: float, shares: Mapping[str, float] = SHARES) -> Document:
    """One document of the base's training text: plain text, or a chat of one to three turns."""
    if rng.random() > sum(shares.values()):
        return plain_document(rng)
    turns = rng.choices((1, 2, 3), weights=(8, 1, 1))[0]
    families = rng.choices(list(shares), list(shares.values()), k=turns)
    exchanges = [
        outside_exchange(rng) if name == "outside" else base_exchange(FAMILIES[name], rng)
        for name in families
    ]
    if turns == 1:
        exchanges = [(chatty(prompt, rng, chatter), answer) for prompt, answer in exchanges]
    return chat_document(exchanges)


def example_prompts(task: Task, n: int, seed: int) -> list[str]:
    """What somebody would give as examples of the task: trained wordings, no answers."""
    rng = Random(f"{seed}/examples/{task.name}")
    return [task_exchange(task, rng)[0] for _ in range(n)]
