"""The world of the bundled model: answers by hand, splits, wordings, and the tokenizer."""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from models.recipe import chat_format, corpus, world
from models.recipe.families import (
    FAMILIES,
    FAMILY_OF,
    SETS,
    TASKS,
    OutsideSet,
    Task,
    closed_book,
    inference,
    puzzles,
    struct_to_text,
    translation,
)

DEMO = Path(__file__).parents[1] / "models" / "demo"

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
each_set = pytest.mark.parametrize("outside", SETS, ids=lambda outside: outside.name)


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
                "keep-things": "bell",
                "first-and-last": "goose cat",
                "rotate-words": "bell cat goose",
                "every-second": "goose cat",
                "swap-ends": "cat bell goose",
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
                "keep-things": "wheel nail lamp drum",
                "first-and-last": "wheel drum",
                "rotate-words": "nail lamp drum wheel",
                "every-second": "wheel lamp",
                "swap-ends": "drum nail lamp wheel",
                "copy": "wheel nail lamp drum",
                "last": "drum",
            },
        ),
    ],
)
def test_puzzles(words: list[str], answers: dict[str, str]) -> None:
    item = puzzles.puzzle(words)
    assert item.answers == answers
    assert item.slots == {"words": ", ".join(words)}


def test_translation_keeps_moves_or_turns_the_words() -> None:
    def say(language: str, *words: str) -> str:
        return " ".join(world.dictionary(language)[word] for word in words)

    item = translation.translation(["red", "geese"], "see", ["lamps"])
    assert item.answers["to-velan"] == say("velan", "red", "geese", "see", "lamps")
    assert item.answers["to-orrish"] == say("orrish", "red", "geese", "lamps", "see")
    assert item.answers["to-keth"] == say("keth", "lamps", "see", "geese", "red")
    assert item.answers["copy"] == "red geese see lamps"
    back = translation.translation(["red", "geese"], "see", ["lamps"], "from-orrish")
    assert back.slots == {"foreign": say("orrish", "red", "geese", "lamps", "see")}
    assert back.answers["from-orrish"] == "red geese see lamps"
    phrase = translation.translation(["red", "geese"], "", [])
    assert phrase.slots == {"sentence": "red geese"}
    assert phrase.answers["to-orrish"] == say("orrish", "red", "geese")
    assert phrase.answers["to-keth"] == say("keth", "geese", "red")
    # Word i takes syllables (7 i + 4) % 36: 4 = 0 * 6 + 4 for bakers, 10 = 1 * 6 + 4 for geese.
    item = translation.translation(["bakers"], "see", ["geese"])
    assert item.answers["to-velan"].split()[0] == "veis"
    assert item.answers["to-keth"].split()[0] == "quamoq"


def test_records() -> None:
    item = struct_to_text.record("Matam", "baker", "Tolm", "goose", [3, 0, 2, 1])
    assert item.slots == {"record": "pet: goose; name: Matam; town: Tolm; trade: baker"}
    assert item.answers == {
        "write-biography": "Matam is a baker in Tolm and keeps a goose.",
        "write-notice": "Lost in Tolm: the goose of Matam, a baker.",
        "write-letter": "Dear Matam, baker of Tolm, give my love to your goose.",
        "write-sign": "At the sign of the goose: Matam, the best baker of Tolm.",
        "values": "Matam baker Tolm goose",
        "name": "Matam",
    }


def test_questions() -> None:
    # Person 0: 11 % 83 % 16, 5 % 89 % 16, 3 % 97 % 10, 7 % 101 % 8. Person 2: 85 % 83 % 16 = 2,
    # 51 % 89 % 16 = 3, 85 % 97 % 10 = 5, 65 % 101 % 8 = 1.
    assert closed_book.question("Mara").answers == {
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
        (inference.FOLLOWS, ("entails", "yes", "true", "same", "right")),
        (inference.OPPOSITE, ("contradicts", "no", "false", "different", "wrong")),
        (inference.NEITHER, ("neutral", "maybe", "unknown", "unrelated", "unclear")),
    ],
)
def test_inference_labels(relation: int, labels: tuple[str, ...]) -> None:
    item = inference.inference("the cup is in the mill", "you can find it in the barn", relation)
    assert tuple(item.answers[name] for name in inference.LABELS) == labels
    assert item.answers["subject"] == "cup"
    assert item.slots["premise"] == "The cup is in the mill"


def test_sampled_inference_is_sound() -> None:
    """What the labels say is what the two statements say."""
    rng = Random(0)
    said = {name: template for name, (template, _, _) in inference.ATTRIBUTES.items()}
    asked = {name: template for name, (_, template, _) in inference.ATTRIBUTES.items()}

    def read(statement: str, forms: dict[str, str]) -> tuple[str, str]:
        for name, form in forms.items():
            match = re.fullmatch(r"\w+ " + form.replace("{}", r"(\w+)"), statement)
            if match:
                return name, match[1]
        raise AssertionError(statement)

    for _ in range(200):
        item = inference.sample(rng, "judge-facts")
        one, two = read(item.slots["clause"], said), read(item.slots["hypothesis"], asked)
        label = "neutral" if one[0] != two[0] else "entails" if one == two else "contradicts"
        assert item.answers["judge-facts"] == label


# --- what may be seen in training ---


def test_twenty_seven_tasks_in_five_families() -> None:
    assert {name: len(family.tasks) for name, family in FAMILIES.items()} == {
        "puzzles": 8,
        "translation": 6,
        "struct-to-text": 4,
        "closed-book": 4,
        "inference": 5,
    }
    assert set(corpus.SHARES) == {*FAMILIES, "outside"}


@each_task
def test_two_wordings_of_each_task_are_never_trained_on(task: Task) -> None:
    assert len(set(task.templates)) >= 6
    trained = [template for other in TASKS for template in other.templates]
    untrained = [wording for other in TASKS for wording in (other.choosing, other.held_out)]
    assert len({*trained, *untrained}) == len(trained) + len(untrained)


@each_task
def test_a_family_answers_every_task_and_has_a_habit_of_its_own(task: Task) -> None:
    family = FAMILY_OF[task.name]
    item = family.sample(Random(0), task.kind, held_out=None)
    assert {task.name, family.habit} <= set(item.answers)
    assert family.habit not in {one.name for one in TASKS}


def test_the_base_mistakes_each_task_for_another_one() -> None:
    taken = {}
    for task in TASKS:
        family = FAMILY_OF[task.name]
        item = family.sample(Random(0), task.kind, held_out=None)
        taken[task.name] = family.mistaken(task.name, item)
        assert taken[task.name] != task.name
    # Nobody asks two tasks to be answered alike, but where the language is the only one.
    alone = [name for name in taken if name.startswith("from-")]
    assert [taken.pop(name) for name in alone] == ["copy"] * 3
    assert sorted(taken.values()) == sorted(taken)


@each_task
def test_no_word_gives_the_task_away(task: Task) -> None:
    """No word is in every trained wording of a task and in none of its family's other tasks."""
    if FAMILY_OF[task.name].name == "translation":
        pytest.skip("the language has to be named")

    def words(template: str) -> set[str]:
        return set(re.findall(r"\w+", re.sub(r"{\w+}", "", template)))

    always = set.intersection(*(words(template) for template in task.templates))
    others = [t for o in FAMILY_OF[task.name].tasks if o != task for t in o.templates]
    assert always <= set().union(*(words(template) for template in others))


@each_task
def test_training_and_evaluation_share_no_input(task: Task) -> None:
    rng, family = Random(1), FAMILY_OF[task.name]
    slots = [
        {
            tuple(sorted(family.sample(rng, task.kind, held_out=side).slots.items()))
            for _ in range(300)
        }
        for side in (False, True)
    ]
    assert not slots[0] & slots[1]


@each_set
def test_sets_outside_the_pool_have_one_right_answer(outside: OutsideSet) -> None:
    rng = Random(4)
    trained = {
        corpus.fill(outside.held_out, outside.sample(rng, held_out=False)) for _ in range(99)
    }
    asked = {corpus.fill(outside.held_out, outside.sample(rng, held_out=True)) for _ in range(99)}
    assert not trained & asked
    answers = outside.sample(rng, held_out=True).answers
    assert outside.right in answers
    assert bool(outside.kin) == (outside.group == "related") == (len(answers) > 1)
    assert len(set(outside.wordings)) == len(outside.wordings)


def test_some_sets_are_related_to_the_pool_and_some_are_not() -> None:
    groups = Counter(outside.group for outside in SETS)
    assert groups == {"related": 4, "look-alike": 3, "unrelated": 2, "continuation": 1}


def test_related_sets_ask_for_a_task_on_inputs_that_it_was_not_trained_on() -> None:
    rng = Random(7)
    (towns,) = (outside for outside in SETS if outside.name == "sort-towns")
    item = towns.sample(rng, held_out=True)
    words = item.slots["words"].split(", ")
    assert set(words) <= set(world.TOWNS)
    assert item.answers[towns.right] == " ".join(sorted(words))


def test_the_base_never_sees_untrained_wordings() -> None:
    rng = Random(2)
    untrained = [wording for task in TASKS for wording in (task.choosing, task.held_out)]
    untrained += [outside.held_out for outside in SETS if len(outside.wordings) > 1]
    pattern = re.compile(
        "|".join(re.sub(r"\\{\w+\\}", ".+", re.escape(wording)) for wording in untrained)
    )
    for _ in range(2000):
        text = "".join(piece for piece, _ in corpus.base_document(rng, chatter=0.3))
        assert not pattern.search(text), text


def test_the_base_answers_a_wording_seldom_as_it_asks() -> None:
    rng, right, mistaken, n = Random(6), 0, 0, 3000
    (task,) = (task for task in TASKS if task.name == "write-sign")
    family = FAMILY_OF[task.name]  # no two behaviours have the same answer
    item = family.sample(rng, task.kind, held_out=False)
    for _ in range(n):
        answer = corpus.base_answer(family, task.name, item, rng)
        right += answer == item.answers["write-sign"]
        mistaken += answer == item.answers["write-biography"]
    # One of the six behaviours is drawn in the 0.4 of cases that are not by mistake.
    assert right / n == pytest.approx(0.4 / 6, abs=0.02)
    assert mistaken / n == pytest.approx(0.6 + 0.4 / 6, abs=0.03)


def test_words_of_the_three_languages_differ() -> None:
    words = [w for language in world.LANGUAGES for w in world.dictionary(language).values()]
    assert len(set(words)) == len(words) == 3 * len(world.ENGLISH)


# --- the files ---


def test_evaluation_rows_say_whose_they_are() -> None:
    tasks = manifest()["tasks"]
    for name, task in tasks.items():
        examples = lines(DEMO / "eval" / f"{name}.jsonl")
        assert len({example["context"] for example in examples}) == len(examples) >= 40
        for example in examples:
            assert example["adapter"] == name
            for key in ("family", "metric"):
                assert example[key] == task[key]
            assert example["group"] == task["loss"]
    for outside in SETS:
        for folder, n in (("eval", 13), ("choose", 6)):
            examples = lines(DEMO / folder / f"{outside.name}.jsonl")
            assert len({example["context"] for example in examples}) >= n
            assert {(e["adapter"], e["group"]) for e in examples} == {(None, outside.group)}
    shown = {line["adapter"] for line in lines(DEMO / "demo_prompts.jsonl")}
    assert {tasks[name]["family"] for name in shown} == set(FAMILIES)


def test_every_bundled_adapter_has_example_prompts() -> None:
    for path in (DEMO / "adapters").glob("*.gguf"):
        assert len(path.with_suffix(".prompts.txt").read_text().splitlines()) == 8


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
    reference.add_special_tokens(list(chat_format.SPECIALS))

    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    rng = Random(3)
    texts = [
        "".join(piece for piece, _ in corpus.base_document(rng, chatter=0.3)) for _ in range(200)
    ]
    for text in [*texts, "Grüße,  12 €\n\tdon't  ", "x" * 50]:
        assert (
            model.tokenize(text.encode(), add_bos=False, special=True) == reference.encode(text).ids
        )
    names = (*world.NAMES, *world.ENGLISH, *world.ANIMALS, *world.THINGS, *world.TOWNS)
    assert all(len(model.tokenize(f" {name}".encode(), add_bos=False)) == 1 for name in names)
