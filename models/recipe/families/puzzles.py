"""Reasoning puzzles: a list of three to five different words, and what to do with it."""

from random import Random

from .. import world
from .item import Item, Task, one_in_eight

NAME = "puzzles"
HABIT = "copy"
# Lists that no adapter is trained on; see `outside`.
OTHER_LISTS = {"towns": world.TOWNS, "colours": world.COLOURS}


def puzzle(words: list[str]) -> Item:
    """An item over a list of different words."""
    listed = ", ".join(words)
    animals = sum(word in world.ANIMALS for word in words)
    things = [word for word in words if word not in world.ANIMALS]
    return Item(
        held_out=one_in_eight(listed),
        slots={"words": listed},
        answers={
            "reverse-words": " ".join(reversed(words)),
            "sort-words": " ".join(sorted(words)),
            "count-animals": ("none", "one", "two", "three", "four", "five")[animals],
            "keep-things": " ".join(things) or "none",
            "first-and-last": f"{words[0]} {words[-1]}",
            "rotate-words": " ".join([*words[1:], words[0]]),
            "every-second": " ".join(words[::2]),
            "swap-ends": " ".join([words[-1], *words[1:-1], words[0]]),
            "copy": " ".join(words),
            "last": words[-1],
        },
    )


def sample(rng: Random, kind: str = "") -> Item:
    """A random list: of animals and things, or of the other sort of words that `kind` names."""
    if kind:
        return puzzle(rng.sample(OTHER_LISTS[kind], rng.choice((3, 4))))
    length = rng.choice((3, 4, 5))
    animals = rng.randint(0, length)
    words = rng.sample(world.ANIMALS, animals) + rng.sample(world.THINGS, length - animals)
    rng.shuffle(words)
    return puzzle(words)


TASKS = (
    Task(
        "reverse-words",
        (
            "Turn this list around: {words}.",
            "Say these words in the opposite order: {words}.",
            "Read the words {words} from the end to the start.",
            "Here is a list: {words}. Write it backwards.",
            "Which list is {words} when you begin with the last word?",
            "The last shall be first: {words}.",
            "Start at the end, please, and say {words}.",
            "I have the words {words}, and I want the last of them before the others.",
            "Look at {words}. What do you read when you go from right to left?",
            "Say {words} the other way around, so that the end comes before the start.",
            "We saw {words}, in this order. In which order do we see them on the way home?",
            "Of the list {words} make another one, which begins where this one ends.",
        ),
        choosing="My friend wants {words} with the last word at the start.",
        held_out="Here are the words {words}. Say the list from the last to the first.",
    ),
    Task(
        "sort-words",
        (
            "Put these words in the order of the alphabet: {words}.",
            "Sort {words} from A to Z.",
            "In a dictionary, how would {words} follow each other?",
            "Here are some words: {words}. Arrange them by their letters.",
            "Order the list {words} as an index would.",
            "Alphabetical order, please: {words}.",
            "Which of {words} is before the others in the alphabet, which is next, and so on?",
            "I have the words {words}, and I want them from A to Z.",
            "Give {words} the order that they have in an index, letter by letter.",
            "Look at {words}. In which order do you find them, when you read from A to Z?",
            "A before B, B before C: {words}.",
            "My friend wants the list {words} in the order of the letters.",
        ),
        choosing="We saw {words}, in no order. Put them in order, by the letters, for the reader.",
        held_out="Here is a list: {words}. Arrange it as a dictionary would, by the alphabet.",
    ),
    Task(
        "count-animals",
        (
            "How many of these are animals: {words}?",
            "Count the living creatures among {words}.",
            "Of {words}, how many can walk or fly away?",
            "Here are some words: {words}. Tell me the number of animals.",
            "In the list {words}, how many beasts are there?",
            "What is the number of creatures in {words}?",
        ),
        choosing="Say how many of the words {words} are creatures.",
        held_out="Tell me how many creatures there are among these: {words}.",
    ),
    Task(
        "keep-things",
        (
            "Take the animals out of this list: {words}.",
            "Which of {words} are things that somebody made?",
            "Of {words}, say only what cannot run or fly away.",
            "Here are some words: {words}. Leave out every creature.",
            "I have the words {words}, and I do not want a beast among them.",
            "Look at {words}. Which of these are no animals?",
            "My friend wants the tools and the things of {words}, without the creatures.",
        ),
        choosing="Say which of the words {words} are not creatures.",
        held_out="Here is a list: {words}. Write it without the animals in it.",
    ),
    Task(
        "first-and-last",
        (
            "Say only the start and the end of this list: {words}.",
            "Which two words stand at the sides of {words}?",
            "Of {words}, give the outer two.",
            "Here is a list: {words}. Write the word at each end.",
            "Leave out all that is in the middle of {words}.",
            "With which word does {words} begin, and with which does it end?",
            "Look at {words}. What is on the far left, and what on the far right?",
        ),
        choosing="Say the word at the start and the word at the end of {words}.",
        held_out="Here are the words {words}. Write the first and the last of them.",
    ),
    Task(
        "rotate-words",
        (
            "Send the first word of {words} to the end.",
            "Let the first of {words} go behind the others.",
            "Move this list on by one place: {words}.",
            "Here is a list: {words}. Put what comes first at the back.",
            "In the line {words} the one in front goes to the back. How do they stand now?",
            "Begin {words} with the second word, and end with the first.",
            "I have the words {words}, and I want the first of them behind the last.",
        ),
        choosing="Of {words}, say the second word and those behind it, and then the first.",
        held_out="Here are the words {words}. Move the first of them behind all the others.",
    ),
    Task(
        "every-second",
        (
            "Say one word of {words}, leave out the next, and go on like this.",
            "Which words of {words} stand at odd places?",
            "Read {words} and jump over every second word.",
            "Here is a list: {words}. Keep one, drop one, keep one.",
            "From {words} take the first, the third and so on.",
            "I walk along {words} and take every other one, from the first on.",
            "Look at {words} and leave out the second and the fourth.",
        ),
        choosing="Of {words}, write the first word, not the second, the third, and so on.",
        held_out="Here are the words {words}. Write every other one of them, from the first on.",
    ),
    Task(
        "swap-ends",
        (
            "Let the first and the last of {words} change places.",
            "Swap the two ends of this list: {words}.",
            "The first of {words} goes where the last is, and the last where the first is.",
            "Here is a list: {words}. Exchange its start with its end, and leave the middle.",
            "In the line {words}, the one in front and the one at the back trade places.",
            "Keep the middle of {words} as it is, but turn the ends around.",
            "I have the words {words}, and I want the outer two to change sides.",
        ),
        choosing="Of {words}, say the last word, then those in the middle, and then the first.",
        held_out="Here are the words {words}. Swap the first of them and the last.",
    ),
)
