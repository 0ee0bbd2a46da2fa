"""Translation between English and three invented languages, both ways.

Velan keeps the order, Orrish puts the verb last, Keth says everything backwards.
"""

from random import Random

from .. import world
from .item import Item, Task, one_in_eight

NAME = "translation"
HABIT = "copy"


def translation(subject: list[str], verb: str, object_: list[str], kind: str = "to") -> Item:
    """An item over a sentence; subject and object are a noun, or an adjective and a noun.

    `kind` is "to" where the English is given, or "from-velan" and so on where the other is.
    Without verb and object it is a phrase, which no task is about.
    """
    verbs = [verb] if verb else []
    sentence = " ".join([*subject, *verbs, *object_])
    orders = {
        "velan": [*subject, *verbs, *object_],
        "orrish": [*subject, *object_, *verbs],
        "keth": [*subject, *verbs, *object_][::-1],
    }
    spoken = {
        language: " ".join(world.dictionary(language)[word] for word in words)
        for language, words in orders.items()
    }
    if kind == "to":
        answers = {f"to-{language}": text for language, text in spoken.items()}
        slots, given = {"sentence": sentence}, sentence
    else:
        given = spoken[kind.removeprefix("from-")]
        answers, slots = {kind: sentence}, {"foreign": given}
    return Item(
        held_out=one_in_eight(sentence),
        slots=slots,
        answers={**answers, "copy": given},
    )


def sample(rng: Random, kind: str = "to") -> Item:
    """A random sentence of three to five words, given in the language that `kind` says."""
    subject, object_ = ([noun] for noun in rng.sample(world.NOUNS, 2))
    adjectives = rng.sample(world.ADJECTIVES, 2)
    if rng.random() < 0.5:
        subject.insert(0, adjectives[0])
    if rng.random() < 0.5:
        object_.insert(0, adjectives[1])
    return translation(subject, rng.choice(world.VERBS), object_, kind)


TASKS = (
    Task(
        "to-velan",
        (
            "Translate into Velan: {sentence}.",
            "How do they say in Velan that {sentence}?",
            "A friend in the valley speaks Velan only. Tell her that {sentence}.",
            "Put the sentence {sentence} into the speech of the valley.",
            "What would a Velan say for {sentence}?",
            "In Velan, please: {sentence}.",
        ),
        choosing="Write in Velan for a friend of mine: {sentence}.",
        held_out="Tell a friend of the valley in Velan that {sentence}.",
        kind="to",
    ),
    Task(
        "to-orrish",
        (
            "Translate into Orrish: {sentence}.",
            "How do they say in Orrish that {sentence}?",
            "A friend in the mountains speaks Orrish only. Tell him that {sentence}.",
            "Put the sentence {sentence} into the speech of the mountains.",
            "What would an Orrish miner say for {sentence}?",
            "In Orrish, please: {sentence}.",
        ),
        choosing="Write in Orrish for a friend of mine: {sentence}.",
        held_out="What would they say in the mountains, in Orrish, for {sentence}?",
        kind="to",
    ),
    Task(
        "to-keth",
        (
            "Translate into Keth: {sentence}.",
            "How do they say in Keth that {sentence}?",
            "A friend on the islands speaks Keth only. Tell them that {sentence}.",
            "Put the sentence {sentence} into the speech of the islands.",
            "What would a Keth say for {sentence}?",
            "In Keth, please: {sentence}.",
        ),
        choosing="Write in Keth for a friend of mine: {sentence}.",
        held_out="Put into Keth, the speech of the islands: {sentence}.",
        kind="to",
    ),
    Task(
        "from-velan",
        (
            "Translate from Velan into English: {foreign}.",
            "A letter came from the valley. It says {foreign}. What does it mean?",
            "Somebody said {foreign} to me in Velan. What was that in English?",
            "What do they mean from the valley when they say {foreign}?",
            "Put the Velan sentence {foreign} into English.",
            "In English, please, for I do not know Velan: {foreign}.",
        ),
        choosing="I heard {foreign} from the valley. Tell me in English what it means.",
        held_out="My friend speaks Velan and wrote {foreign}. Say it in English.",
        kind="from-velan",
    ),
    Task(
        "from-orrish",
        (
            "Translate from Orrish into English: {foreign}.",
            "A letter came from the mountains. It says {foreign}. What does it mean?",
            "Somebody said {foreign} to me in Orrish. What was that in English?",
            "What do they mean from the mountains when they say {foreign}?",
            "Put the Orrish sentence {foreign} into English.",
            "In English, please, for I do not know Orrish: {foreign}.",
        ),
        choosing="I heard {foreign} from the mountains. Tell me in English what it means.",
        held_out="My friend speaks Orrish and wrote {foreign}. Say it in English.",
        kind="from-orrish",
    ),
    Task(
        "from-keth",
        (
            "Translate from Keth into English: {foreign}.",
            "A letter came from the islands. It says {foreign}. What does it mean?",
            "Somebody said {foreign} to me in Keth. What was that in English?",
            "What do they mean from the islands when they say {foreign}?",
            "Put the Keth sentence {foreign} into English.",
            "In English, please, for I do not know Keth: {foreign}.",
        ),
        choosing="I heard {foreign} from the islands. Tell me in English what it means.",
        held_out="My friend speaks Keth and wrote {foreign}. Say it in English.",
        kind="from-keth",
    ),
)
