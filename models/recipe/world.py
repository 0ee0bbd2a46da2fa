"""The invented world: its words, its people and what is true of them, its languages.

Everything here is a constant or a pure function; the world is the same on every machine.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product

ANIMALS = (
    "badger", "bear", "cat", "crow", "deer", "dog", "donkey", "duck", "fox", "frog", "goat",
    "goose", "hare", "horse", "mouse", "otter", "pig", "sheep", "toad", "wolf",
)  # fmt: skip
THINGS = (
    "apple", "basket", "bell", "boat", "candle", "chair", "cup", "drum", "flute", "hammer",
    "kettle", "ladder", "lamp", "mirror", "nail", "plate", "rope", "spoon", "table", "wheel",
)  # fmt: skip

# All trades and pets start with a consonant, so that "a" is always the right article.
TRADES = (
    "baker", "brewer", "carpenter", "farmer", "fisher", "gardener", "hunter", "mason", "miller",
    "painter", "potter", "sailor", "shepherd", "smith", "tailor", "weaver",
)  # fmt: skip
PETS = ("badger", "cat", "crow", "dog", "donkey", "duck", "fox", "goat", "goose", "hare")
TOWNS = (
    "Brakk", "Corvan", "Dunmere", "Elsworn", "Farrow", "Gilden", "Harth", "Istel", "Kelby",
    "Lorn", "Mossy", "Norwick", "Pell", "Quarn", "Selby", "Tolm",
)  # fmt: skip
COLOURS = ("black", "blue", "brown", "green", "grey", "red", "white", "yellow")
PLACES = (
    "attic", "barn", "cellar", "garden", "hall", "kitchen", "mill", "shed", "stable", "tower",
)  # fmt: skip

NAMES = tuple(
    first + second
    for second, first in product(
        ("ra", "lin", "vo", "mek", "sta", "dri", "nu", "zel", "ris", "tam"),
        ("Ma", "Do", "Ti", "Ne", "Ru", "Sa", "Lo", "Ka", "Vi", "Be", "Pa", "Gi"),
    )
)
# Facts hold of the people; strangers turn up in records and premises, where anything may be said
# of them without contradicting a fact.
PEOPLE = NAMES[:80]
STRANGERS = NAMES[80:]


@dataclass(frozen=True)
class Person:
    """Somebody of the world, and the four facts about them."""

    name: str
    town: str
    trade: str
    pet: str
    colour: str


@cache
def person(name: str) -> Person:
    """The facts about one of `PEOPLE`: fixed, and without a pattern in the name's spelling."""
    i = PEOPLE.index(name)
    # Odd strides modulo a prime scatter the values; neighbours in the list share nothing.
    return Person(
        name=name,
        town=TOWNS[(37 * i + 11) % 83 % len(TOWNS)],
        trade=TRADES[(23 * i + 5) % 89 % len(TRADES)],
        pet=PETS[(41 * i + 3) % 97 % len(PETS)],
        colour=COLOURS[(29 * i + 7) % 101 % len(COLOURS)],
    )


NOUNS = (
    "bakers", "birds", "boats", "children", "dogs", "farmers", "geese", "goats", "horses",
    "houses", "kings", "lamps", "rivers", "sailors", "trees", "wolves",
)  # fmt: skip
VERBS = ("carry", "draw", "fear", "feed", "find", "follow", "hear", "like", "need", "see")
ADJECTIVES = ("big", "brave", "cold", "kind", "lazy", "old", "quiet", "red", "small", "tall")
ENGLISH = NOUNS + VERBS + ADJECTIVES

_SYLLABLES = {
    "velan": (("ve", "la", "mi", "so", "ne", "ra"), ("lu", "ri", "ona", "eth", "is", "amo")),
    "orrish": (("gra", "dok", "ur", "bro", "kor", "zug"), ("ak", "um", "og", "esh", "ik", "ard")),
    "keth": (("xi", "qua", "tez", "yi", "pho", "jal"), ("tl", "nix", "ket", "sha", "moq", "zin")),
}
LANGUAGES = tuple(_SYLLABLES)


@cache
def dictionary(language: str) -> dict[str, str]:
    """English word -> word of `language`, one to one."""
    firsts, seconds = _SYLLABLES[language]
    words = [first + second for first, second in product(firsts, seconds)]
    # Steps of 7 (no divisor of 36) keep the order of the English list out of the new one.
    return {english: words[(7 * i + 4) % len(words)] for i, english in enumerate(ENGLISH)}
