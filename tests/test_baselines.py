"""What texts did to adapters: running statistics, kept, damaged, and refused by the disk."""

import numpy as np
import pytest

from logo_local.routing.baselines import ENOUGH, SAVE_EVERY, Baselines


def vectors(n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)


def test_moments_are_those_of_all_the_prompts(tmp_path):
    past, rows = Baselines(tmp_path / "past.npz"), vectors(ENOUGH + 9)
    for row in rows:
        past.add({"a": row})
    mean, deviation = past.moments("a", 3)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(deviation, rows.std(axis=0), rtol=1e-5)


def test_a_few_prompts_say_nothing(tmp_path):
    past = Baselines(tmp_path / "past.npz")
    for row in vectors(ENOUGH - 1):
        past.add({"a": row})
    assert past.moments("a", 3) is None
    assert past.moments("b", 3) is None
    past.add({"a": vectors(1)[0]})
    assert past.moments("a", 3) is not None
    assert past.moments("a", 2) is None  # it has other modules now


def test_what_was_counted_is_there_the_next_time(tmp_path):
    path, rows = tmp_path / "deep" / "past.npz", vectors(ENOUGH + 5)
    for begin, end in ((0, 20), (20, len(rows))):
        past = Baselines(path)
        for row in rows[begin:end]:
            past.add({"strange / name": row})
        past.save()
    mean, _ = Baselines(path).moments("strange / name", 3)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-5)
    assert [file.name for file in path.parent.iterdir()] == ["past.npz"]


def test_it_is_written_now_and_then(tmp_path):
    past = Baselines(tmp_path / "past.npz")
    for row in vectors(SAVE_EVERY - 1):
        past.add({"a": row})
    assert not past.path.exists()
    past.add({"a": vectors(1)[0]})
    assert past.path.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"nonsense" * 99])
def test_a_damaged_file_is_begun_anew(tmp_path, content, caplog):
    path = tmp_path / "past.npz"
    path.write_bytes(content)
    past = Baselines(path)
    assert past.moments("a", 3) is None
    assert "damaged" in caplog.text


def test_numbers_that_are_none_are_passed_over(tmp_path):
    path = tmp_path / "past.npz"
    np.savez(path, keys=["a", "b"], m0=np.full((3, 3), np.nan), m1=np.zeros((2, 3)))
    assert Baselines(path).moments("a", 3) is None


def test_a_disk_that_takes_nothing_is_no_error(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    past = Baselines(tmp_path / "file" / "past.npz")
    past.add({"a": vectors(1)[0]})
    past.save()
    assert "is not remembered" in caplog.text
