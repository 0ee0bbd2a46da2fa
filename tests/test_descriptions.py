"""Descriptions: margins by hand, and what stands for a description."""

import numpy as np
import pytest

from logo_local.files.description import description_of
from logo_local.routing.descriptions import FRAMES, INPUTS, Descriptions, description_prompts
from logo_local.routing.registry import find
from logo_local.routing.scorers import profiles as scorers
from logo_local.routing.scoring import Compared, Prompt


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"description.txt": "\ufeffSorts words.\r\nMore."}, "Sorts words."),
        ({"adapter_config.json": '{"description": "Sorts words."}'}, "Sorts words."),
        ({"README.md": "---\ndescription: Sorts words.\n---\n# Card\nText."}, "Sorts words."),
        ({"README.md": "# Card\n\nText."}, "Text."),
        ({"adapter_config.json": '{"description": 7}', "README.md": "Text."}, "Text."),
        ({"adapter_config.json": "no JSON"}, ""),
        ({"description.txt": "", "README.md": "Text."}, "Text."),
        ({}, ""),
    ],
)
def test_where_the_description_of_a_folder_comes_from(tmp_path, files, expected):
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert description_of(tmp_path) == expected


def test_what_is_known_of_a_file_is_not_read_again(tmp_path):
    file = tmp_path / "sort.gguf"  # which is not even there
    assert description_of(file, "Sorts words.") == "Sorts words."
    assert description_of(file, "") == ""
    (tmp_path / "sort.description.txt").write_text("Sorts anything.")
    assert description_of(file, "Sorts words.") == "Sorts anything."


def vectors(*rows):
    return np.array(rows, dtype=np.float32)


def test_a_description_stands_before_and_behind_inputs():
    found = description_prompts("Sorts words.")
    assert len(found) == len(FRAMES) * len(INPUTS)
    assert found[0] == f"Sorts words.\n\n{INPUTS[0]}"
    assert found[-1] == f"{INPUTS[-1]}\n\nSorts words."


@pytest.mark.parametrize(
    ("x", "name", "margin"),
    [
        ((1, 0), "a", 3 / 1 - 1),  # 1 from a, 3 from b
        ((3.5, 0), "b", 3.5 / 0.5 - 1),
        ((0, 4), "a", 1 / 4 - 1),  # a general request is at (0, 5)
    ],
)
def test_margins_by_hand(x, name, margin):
    found = Descriptions.fit(
        {"a": vectors((0, 0)), "b": vectors((4, 0))}, vectors((0, 5), (-90, 0))
    )
    nearest = found.nearest(np.array(x, dtype=np.float32))
    assert nearest[0] == name
    assert nearest[1] == pytest.approx(margin, rel=1e-4)


def test_a_lone_description_competes_with_general_requests():
    found = Descriptions.fit({"a": vectors((0, 0), (0, 1))}, vectors((4, 0)))
    assert found.nearest(vectors(1, 0.5).ravel())[1] > 1
    assert found.nearest(vectors(3, 0.5).ravel())[1] < 0


def test_which_descriptions_a_message_continues():
    known = {"a": vectors((0, 0)), "b": vectors((4, 0))}
    found = Descriptions.fit(known, vectors((2, 9), (2, -3)), vectors((0, 50)))
    assert found.continued(vectors(0.5, 0).ravel()) == {"a"}  # b is further than (2, -3)
    assert found.continued(vectors(2, 0).ravel()) == {"a", "b"}
    assert found.continued(vectors(2, -3).ravel()) == set()
    assert found.continued(vectors(0, 49).ravel()) == {"a", "b"}
    assert Descriptions.fit(known, vectors((2, 9))).continued(vectors(0, 49).ravel()) == set()


class Scripted:
    """A scorer whose profiles fit nothing, and whose nearest description is `found`."""

    adapters = dict.fromkeys(["described", "shown", "unknown"])
    base = None

    def __init__(self, found, compared=()):
        self.descriptions = type(
            "",
            (),
            {
                "names": ("described",),
                "nearest": lambda _s, _x: found,
                "continued": lambda _s, _x: frozenset({"described"}),
            },
        )()
        self.compared = lambda _reading, _source: compared
        self.without_profile = lambda _source: []


@pytest.mark.parametrize(
    ("margin", "expected"), [(0.5, {"described": 1.0}), (0.04, {}), (-0.2, {})]
)
def test_a_description_counts_where_no_example_fits(monkeypatch, margin, expected):
    monkeypatch.setattr(scorers, "profile_vector", lambda _reading, _base: None)
    fit = find("mixed").score(Scripted(("described", margin)), Prompt())
    assert {name: score for name, score in fit.scores.items() if score} == expected
    assert fit.scores.keys() == Scripted.adapters.keys()
    assert f"margin {margin:.2f}" in fit.reason


def test_examples_that_fit_are_not_pushed_aside_by_a_description(monkeypatch):
    monkeypatch.setattr(scorers, "profile_vector", lambda _reading, _base: None)
    compared = [Compared("shown", -1.0, 0.9, 0.4)]
    fit = find("mixed").score(Scripted(("described", 9.0), compared), Prompt())
    assert {name: score for name, score in fit.scores.items() if score} == {"shown": 1.0}
