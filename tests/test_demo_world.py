"""The world of the bundled model: answers by hand, splits, wordings, and the tokenizer."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from models.recipe import corpus, tasks, templates, world

DEMO = Path(__file__).parents[1] / "models" / "demo"
TASKS = {task.name: task for task in templates.TASKS}

each_task = pytest.mark.parametrize("task", templates.TASKS, ids=lambda task: task.name)


def manifest() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DEMO / "manifest.json").read_text())
    return content


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- answers, by hand ---


@pytest.mark.parametrize(
    ("words", "answers"),
    [
        (
            ["goose", "bell", "cat"],
            {
                "reverse-words": "cat bell goose",
                "sort-words": "bell cat goose",
                "count-animals": "two",
                "copy": "goose bell cat",
                "last": "cat",
            },
        ),
        (
            ["wheel", "nail", "lamp", "drum"],
            {
                "reverse-words": "drum lamp nail wheel",
                "sort-words": "drum lamp nail wheel",
                "count-animals": "none",
                "copy": "wheel nail lamp drum",
                "last": "drum",
            },
        ),
    ],
)
def test_puzzles(words: list[str], answers: dict[str, str]) -> None:
    item = tasks.puzzle(words)
    assert item.answers == answers
    assert item.slots == {"words": ", ".join(words)}


def test_translation_keeps_moves_or_turns_the_words() -> None:
    def say(language: str, *words: str) -> str:
        return " ".join(world.dictionary(language)[word] for word in words)

    item = tasks.translation(["red", "geese"], "see", ["lamps"])
    assert item.answers["to-velan"] == say("velan", "red", "geese", "see", "lamps")
    assert item.answers["to-orrish"] == say("orrish", "red", "geese", "lamps", "see")
    assert item.answers["to-keth"] == say("keth", "lamps", "see", "geese", "red")
    assert item.answers["copy"] == "red geese see lamps"
    # Word i takes syllables (7 i + 4) % 36: 4 = 0 * 6 + 4 for bakers, 10 = 1 * 6 + 4 for geese.
    item = tasks.translation(["bakers"], "see", ["geese"])
    assert item.answers["to-velan"].split()[0] == "veis"
    assert item.answers["to-keth"].split()[0] == "quamoq"


def test_records() -> None:
    item = tasks.record("Matam", "baker", "Tolm", "goose", [3, 0, 2, 1])
    assert item.slots == {"record": "pet: goose; name: Matam; town: Tolm; trade: baker"}
    assert item.answers == {
        "write-biography": "Matam is a baker in Tolm and keeps a goose.",
        "write-notice": "Lost in Tolm: the goose of Matam, a baker.",
        "write-letter": "Dear Matam, baker of Tolm, give my love to your goose.",
        "values": "Matam baker Tolm goose",
        "name": "Matam",
    }


def test_questions() -> None:
    # Person 0: 11 % 83 % 16, 5 % 89 % 16, 3 % 97 % 10, 7 % 101 % 8. Person 2: 85 % 83 % 16 = 2,
    # 51 % 89 % 16 = 3, 85 % 97 % 10 = 5, 65 % 101 % 8 = 1.
    assert tasks.question("Mara").answers == {
        "recall-town": "Norwick",
        "recall-trade": "gardener",
        "recall-pet": "dog",
        "recall-colour": "yellow",
        "repeat-name": "Mara",
    }
    assert world.person("Tira") == world.Person("Tira", "Dunmere", "farmer", "duck", "blue")


@pytest.mark.parametrize(
    ("relation", "labels"),
    [
        (tasks.FOLLOWS, ("entails", "yes", "true")),
        (tasks.OPPOSITE, ("contradicts", "no", "false")),
        (tasks.NEITHER, ("neutral", "maybe", "unknown")),
    ],
)
def test_inference_labels(relation: int, labels: tuple[str, str, str]) -> None:
    item = tasks.inference("the cup is in the mill", "you can find it in the barn", relation)
    names = ("judge-facts", "compare-people", "check-places")
    assert tuple(item.answers[name] for name in names) == labels
    assert item.answers["subject"] == "cup"
    assert item.answers["last"] == "barn"
    assert item.slots["premise"] == "The cup is in the mill"


def test_sampled_inference_is_sound() -> None:
    """What the labels say is what the two statements say."""
    rng = Random(0)
    said = {name: template for name, (template, _, _) in tasks.ATTRIBUTES.items()}
    asked = {name: template for name, (_, template, _) in tasks.ATTRIBUTES.items()}

    def read(statement: str, forms: dict[str, str]) -> tuple[str, str]:
        for name, form in forms.items():
            match = re.fullmatch(r"\w+ " + form.replace("{}", r"(\w+)"), statement)
            if match:
                return name, match[1]
        raise AssertionError(statement)

    for _ in range(200):
        item = tasks.sample("inference", rng, held_out=None, kind="judge-facts")
        one, two = read(item.slots["clause"], said), read(item.slots["hypothesis"], asked)
        label = "neutral" if one[0] != two[0] else "entails" if one == two else "contradicts"
        assert item.answers["judge-facts"] == label


# --- what may be seen in training ---


def test_five_families_of_three() -> None:
    assert Counter(task.family for task in templates.TASKS) == dict.fromkeys(tasks.FAMILIES, 3)
    assert set(corpus.EARLY_SHARES) == set(corpus.LATE_SHARES) == set(tasks.FAMILIES)


@each_task
def test_wordings_differ_and_one_is_held_out(task: templates.Task) -> None:
    assert len(set(task.templates)) >= 4
    everything = [template for other in templates.TASKS for template in other.templates]
    assert task.held_out not in everything
    assert len(set(everything)) == len(everything)


@each_task
def test_no_word_gives_the_task_away(task: templates.Task) -> None:
    """No word is in every trained wording of a task and in none of its family's other tasks."""
    if task.family == "translation":
        pytest.skip("the language has to be named")

    def words(template: str) -> set[str]:
        return set(re.findall(r"\w+", re.sub(r"{\w+}", "", template)))

    always = set.intersection(*(words(template) for template in task.templates))
    others = [
        t for o in templates.TASKS if o.family == task.family and o != task for t in o.templates
    ]
    assert always <= set().union(*(words(template) for template in others))


@each_task
def test_training_and_evaluation_share_no_input(task: templates.Task) -> None:
    rng = Random(1)
    trained = {corpus.task_exchange(task, rng, held_out=False)[0] for _ in range(500)}
    asked = {corpus.task_exchange(task, rng, held_out=True)[0] for _ in range(100)}
    assert not trained & asked

    slots = [
        {
            tuple(
                sorted(tasks.sample(task.family, rng, held_out=side, kind=task.kind).slots.items())
            )
            for _ in range(300)
        }
        for side in (False, True)
    ]
    assert not slots[0] & slots[1]


def test_the_base_never_sees_held_out_wordings() -> None:
    rng = Random(2)
    held_out = [re.sub(r"\\{\w+\\}", ".+", re.escape(task.held_out)) for task in templates.TASKS]
    pattern = re.compile("|".join(held_out))
    for _ in range(2000):
        text = "".join(
            piece for piece, _ in corpus.base_document(rng, corpus.LATE_SHARES, chatter=0.3)
        )
        assert not pattern.search(text), text


def test_words_of_the_three_languages_differ() -> None:
    words = [w for language in world.LANGUAGES for w in world.dictionary(language).values()]
    assert len(set(words)) == len(words) == 3 * len(world.ENGLISH)


# --- the files ---


def test_evaluation_prompts_are_what_the_recipe_makes() -> None:
    for name in manifest()["tasks"]:
        examples = lines(DEMO / "eval" / f"{name}.jsonl")
        assert len({example["context"] for example in examples}) == len(examples) >= 40
        wording = re.sub(r"\\{\w+\\}", ".+", re.escape(TASKS[name].held_out))
        for example in examples:
            assert example["adapter"] == name
            assert re.fullmatch(wording, example["context"])
    families = {TASKS[line["adapter"]].family for line in lines(DEMO / "demo_prompts.jsonl")}
    assert families == set(tasks.FAMILIES)


def test_llama_cpp_tokenises_as_hugging_face() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    gguf = pytest.importorskip("gguf")
    llama_cpp = pytest.importorskip("llama_cpp")
    path = DEMO / "logo-demo.gguf"
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    reference = tokenizers.Tokenizer(
        tokenizers.models.BPE({token: i for i, token in enumerate(tokens)}, merges)
    )
    reference.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.add_special_tokens(list(templates.SPECIALS))

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    rng = Random(3)
    texts = [
        "".join(piece for piece, _ in corpus.base_document(rng, corpus.LATE_SHARES, chatter=0.3))
        for _ in range(200)
    ]
    for text in [*texts, "Grüße,  12 €\n\tdon't  ", "x" * 50]:
        assert (
            model.tokenize(text.encode(), add_bos=False, special=True) == reference.encode(text).ids
        )
    names = (*world.NAMES, *world.ENGLISH, *world.ANIMALS, *world.THINGS, *world.TOWNS)
    assert all(len(model.tokenize(f" {name}".encode(), add_bos=False)) == 1 for name in names)
