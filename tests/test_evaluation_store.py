"""What is kept of an evaluation, and how it goes on."""

import json

import pytest

from logo_local.errors import SettingsError
from logo_local.evaluation.store import Answered, Scored, Store

SETTINGS = {"model": "m", "signals": ("norm",), "seed": 1}
SCORED = Scored("t", 1, False, {"norm": {"a": 0.1}}, {"a": 1.0})
ANSWERED = Answered("t", 1, False, "base", {"a": 1 / 3}, None, "für", {"em": 0.0})


def test_without_a_folder_all_is_in_memory():
    with Store() as store:
        store.add(SCORED)
        store.add(ANSWERED)
    assert store.scored == {("t", 1, False): SCORED}
    assert store.answered == {("t", 1, False, "base"): ANSWERED}


def test_what_was_kept_is_there_again(tmp_path):
    with Store.open(tmp_path / "new" / "out", SETTINGS) as store:
        store.add(SCORED)
        store.add(ANSWERED)
    with Store.open(tmp_path / "new" / "out", SETTINGS) as again:
        assert (again.scored, again.answered) == (store.scored, store.answered)


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, cut):
    with Store.open(tmp_path, SETTINGS) as store:
        store.add(ANSWERED)
        store.add(Answered(**{**vars(ANSWERED), "line": 2, "text": "ü" * 30}))
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    with Store.open(tmp_path, SETTINGS) as store:
        assert list(store.answered.values()) == [ANSWERED]
        third = Answered(**{**vars(ANSWERED), "line": 3})
        store.add(third)
    with Store.open(tmp_path, SETTINGS) as store:
        assert list(store.answered.values()) == [ANSWERED, third]


def test_other_settings_are_an_error_that_names_them(tmp_path):
    Store.open(tmp_path, SETTINGS).close()
    with pytest.raises(SettingsError) as caught:
        Store.open(tmp_path, {"model": "m", "signals": ("norm", "x" * 200), "max_tokens": 3})
    max_tokens, seed, signals = sorted(caught.value.problems)
    assert max_tokens == "max_tokens: null there, 3 now"
    assert seed == "seed: 1 there, null now"
    assert signals.startswith('signals: ["norm"] there, ["norm", "xxx')
    assert len(signals) < 150
    assert "--out" in caught.value.hint


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(SettingsError):
            Store.open(out, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_place(tmp_path):
    with Store.open(tmp_path, SETTINGS) as store:
        store.add(ANSWERED)
    path = tmp_path / "answers.jsonl"
    path.write_text("{]\n" + json.dumps({"task": "t"}) + "\n" + path.read_text())
    with pytest.raises(SettingsError, match="line 1"):
        Store.open(tmp_path, SETTINGS)
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(SettingsError, match="line 1"):
        Store.open(tmp_path, SETTINGS)
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(SettingsError, match="not JSON"):
        Store.open(tmp_path, SETTINGS)
