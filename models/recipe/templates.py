"""How one asks: the wordings of every task, and the chat rendering that all text goes through."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A behaviour that an adapter is trained for, and the ways to ask for it."""

    name: str
    family: str
    templates: tuple[str, ...]  # used in training
    held_out: str  # in no training text; every evaluation asks this way
    kind: str = ""  # inference only: which sort of statement it is asked about


BOS, END, USER, ASSISTANT = "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIALS = (BOS, END, USER, ASSISTANT)

# Every word follows a space, so that a word is the same token wherever it stands.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}"
    "{{ ' ' + message['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def render_prompt(prompt: str) -> str:
    """What the chat template makes of one user message, without the start of text."""
    return f"{USER} {prompt}{END}{ASSISTANT}"


def render_answer(answer: str) -> str:
    """What follows `render_prompt`, up to the end of the answer."""
    return f" {answer}{END}"


TASKS = (
    Task(
        "reverse-words",
        "puzzles",
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
            "My friend wants {words} with the last word at the start.",
        ),
        "Here are the words {words}. Say the list from the last to the first.",
    ),
    Task(
        "sort-words",
        "puzzles",
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
            "We saw {words}, in no order. Put them in order, by the letters, for the reader.",
        ),
        "Here is a list: {words}. Arrange it as a dictionary would, by the alphabet.",
    ),
    Task(
        "count-animals",
        "puzzles",
        (
            "How many of these are animals: {words}?",
            "Count the living creatures among {words}.",
            "Of {words}, how many can walk or fly away?",
            "Here are some words: {words}. Tell me the number of animals.",
            "In the list {words}, how many beasts are there?",
            "What is the number of creatures in {words}?",
        ),
        "Tell me how many creatures there are among these: {words}.",
    ),
    Task(
        "to-velan",
        "translation",
        (
            "Translate into Velan: {sentence}.",
            "How do they say in Velan that {sentence}?",
            "A friend in the valley speaks Velan only. Tell her that {sentence}.",
            "Put the sentence {sentence} into the speech of the valley.",
            "What would a Velan say for {sentence}?",
            "In Velan, please: {sentence}.",
        ),
        "Tell a friend of the valley in Velan that {sentence}.",
    ),
    Task(
        "to-orrish",
        "translation",
        (
            "Translate into Orrish: {sentence}.",
            "How do they say in Orrish that {sentence}?",
            "A friend in the mountains speaks Orrish only. Tell him that {sentence}.",
            "Put the sentence {sentence} into the speech of the mountains.",
            "What would an Orrish miner say for {sentence}?",
            "In Orrish, please: {sentence}.",
        ),
        "What would they say in the mountains, in Orrish, for {sentence}?",
    ),
    Task(
        "to-keth",
        "translation",
        (
            "Translate into Keth: {sentence}.",
            "How do they say in Keth that {sentence}?",
            "A friend on the islands speaks Keth only. Tell them that {sentence}.",
            "Put the sentence {sentence} into the speech of the islands.",
            "What would a Keth say for {sentence}?",
            "In Keth, please: {sentence}.",
        ),
        "Put into Keth, the speech of the islands: {sentence}.",
    ),
    Task(
        "write-biography",
        "struct-to-text",
        (
            "Write a sentence about the life of this person. {record}",
            "Who is this? Tell it in a sentence. {record}",
            "Make a short biography of the record {record}.",
            "Introduce this person to the reader: {record}",
            "From the card {record} write who they are and what they do.",
            "Describe the person in this record. {record}",
        ),
        "Tell the reader in a short sentence who this person is: {record}",
    ),
    Task(
        "write-notice",
        "struct-to-text",
        (
            "The pet of this person is lost. Write the notice. {record}",
            "Write what to put on the wall when the animal has run away. {record}",
            "Make a notice for a missing animal from the record {record}.",
            "Help to find the lost pet: {record}",
            "From the card {record} write a poster, for the animal is gone.",
            "Somebody misses an animal. Put up a poster. {record}",
        ),
        "The animal of this person has run away. Make a poster for the wall: {record}",
    ),
    Task(
        "write-letter",
        "struct-to-text",
        (
            "Write a friendly letter to this person. {record}",
            "Send greetings to somebody we know. {record}",
            "Make a greeting for the post from the record {record}.",
            "Begin a letter with a kind word: {record}",
            "From the card {record} write what I can send by post.",
            "I want to greet this person. Write it for me. {record}",
        ),
        "Send a kind letter to the person on this card: {record}",
    ),
    Task(
        "recall-town",
        "closed-book",
        (
            "Where does {person} live?",
            "In which town is the home of {person}?",
            "Name the place where I can visit {person}.",
            "I want to send {person} a letter. To which town?",
            "Which town does {person} call home?",
            "Tell me where {person} has a house.",
        ),
        "Tell me the town where {person} lives.",
    ),
    Task(
        "recall-trade",
        "closed-book",
        (
            "What does {person} do for a living?",
            "Which trade does {person} follow?",
            "Name the work that {person} does.",
            "How does {person} earn money?",
            "What is written about {person} under the word trade?",
            "Tell me the job of {person}.",
        ),
        "Which work does {person} do to earn a living?",
    ),
    Task(
        "recall-pet",
        "closed-book",
        (
            "Which animal does {person} keep?",
            "What sort of pet lives with {person}?",
            "Name the animal in the house of {person}.",
            "Who eats from the hand of {person} at home?",
            "What animal does {person} look after?",
            "Tell me the pet of {person}.",
        ),
        "Name the pet that {person} has at home.",
    ),
    Task(
        "judge-facts",
        "inference",
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
            "Somebody claims that {hypothesis}. We read that {clause}. Judge the claim.",
        ),
        "We read that {clause}. Does the claim follow that {hypothesis}?",
        kind="judge-facts",
    ),
    Task(
        "compare-people",
        "inference",
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
            "If I find that {clause}, is it right that {hypothesis}?",
        ),
        "If {clause}, would you say that {hypothesis}?",
        kind="compare-people",
    ),
    Task(
        "check-places",
        "inference",
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
            "It is a fact that {clause}. Is it a fact that {hypothesis}?",
        ),
        "It is known that {clause}. A guest says that {hypothesis}. Check the fact.",
        kind="check-places",
    ),
)
