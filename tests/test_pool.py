import json
import logging
import os

import gguf_bytes as g
import numpy as np
import pytest
from safetensors.numpy import save_file

from logo_local import convert
from logo_local.console.report import check_json
from logo_local.convert import FOR_POOL
from logo_local.errors import PoolError
from logo_local.files.adapter_file import AdapterFile
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Changes, Pool

BASE = g.base_model()


def write_peft(folder, *, rank=2, seed=0, config=None):
    """A PEFT folder with q_proj of both blocks of `BASE`."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for block in range(2):
        module = f"base_model.model.model.layers.{block}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = g.floats(rng, rank, g.D)
        tensors[f"{module}.lora_B.weight"] = g.floats(rng, g.D, rank)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings | (config or {})))
    return folder


def write_gguf(path, **kw):
    path.write_bytes(g.adapter(**kw).pack())
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder of three GGUF adapters and one PEFT adapter."""
    folder = tmp_path / "adapters"
    folder.mkdir()
    for i, name in enumerate(("sort-words", "reverse", "upper-case")):
        write_gguf(folder / f"{name}.gguf", seed=i)
    write_peft(folder / "translate")
    return folder


@pytest.fixture
def conversions(monkeypatch):
    """The names of the PEFT folders that are converted."""
    done = []
    real = convert.convert_adapter

    def counted(source, *args, **kw):
        done.append(source.name)
        return real(source, *args, **kw)

    monkeypatch.setattr(convert, "convert_adapter", counted)
    return done


def open_pool(folder, base=BASE, **kw):
    return Pool.open(folder, base, cache=folder.parent / "cache", **{"converter": FOR_POOL, **kw})


def touch(path, seconds=10):
    """Move the modification time on, as a later write would."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + seconds * 10**9))


# --- opening -----------------------------------------------------------------------------------


def test_gguf_files_and_peft_folders_are_sorted_by_name(folder):
    pool = open_pool(folder)
    assert pool.names == ("reverse", "sort-words", "translate", "upper-case")
    assert list(pool.adapters) == list(pool.names)
    assert all(isinstance(adapter, AdapterFile) for adapter in pool.adapters.values())
    assert [adapter.name for adapter in pool.adapters.values()] == list(pool.names)
    assert pool.problems == ()
    assert pool.candidates == pool.names
    assert (pool.pinned, pool.excluded) == ((), ())


def test_a_folder_may_be_given_as_text(folder, tmp_path):
    assert Pool.open(str(folder), BASE, cache=str(tmp_path / "cache"), converter=FOR_POOL).names


def test_nothing_is_written_beside_the_adapters(folder):
    before = sorted(path for path in folder.rglob("*"))
    pool = open_pool(folder)
    assert sorted(path for path in folder.rglob("*")) == before
    assert pool.adapters["translate"].path.is_relative_to(folder.parent / "cache" / "converted")


def test_progress_counts_adapters_and_the_steps_of_a_conversion(folder):
    calls = []
    open_pool(folder, progress=lambda *call: calls.append(call))
    reading = [call[1:] for call in calls if call[0] == "reading adapters"]
    assert reading == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    converting = [call for call in calls if call[0] == "converting translate"]
    assert converting[-1][1] == converting[-1][2] > 1
    assert {call[0] for call in calls} == {"reading adapters", "converting translate"}


def test_unfit_adapters_are_left_out_with_a_line_each(folder, caplog):
    write_peft(folder / "dora", config={"use_dora": True})
    (folder / "broken.gguf").write_bytes(b"GGUF")
    seen = []
    pool = open_pool(folder, on_problem=seen.append)
    assert len(pool.names) == 4
    assert [problem.name for problem in seen] == ["broken", "dora"]
    assert str(seen[0]).startswith("broken.gguf: it is cut short")
    assert "DoRA" in seen[1].reason
    assert tuple(seen) == pool.problems
    assert not caplog.records


def test_an_activated_lora_is_left_out_with_the_reason_and_not_converted(folder, caplog):
    write_peft(folder / "activated", config={"alora_invocation_tokens": [1, 2]})
    pool = open_pool(folder)
    (problem,) = pool.problems
    assert problem.name == "activated"
    assert problem.reason.startswith("it is an activated LoRA (aLoRA)")
    assert "logo-local convert" in problem.hint
    assert "translate" in pool.names
    assert len(converted(folder)) == 1  # of translate
    open_pool(folder)  # and nothing is taken for damaged
    assert "recreated" not in caplog.text


def test_without_a_listener_problems_are_logged(folder, caplog):
    (folder / "broken.gguf").write_bytes(b"GGUF")
    with caplog.at_level(logging.WARNING):
        open_pool(folder)
    assert "left out: broken.gguf: it is cut short" in caplog.text


def test_an_adapter_for_another_base_says_so(folder):
    wide = {name: tuple(2 * n for n in shape) for name, shape in BASE.tensors.items()}
    with pytest.raises(PoolError) as caught:
        open_pool(folder, g.base_model(tensors=wide, name="wide base"))
    assert len(caught.value.problems) == 4
    assert "another base" in caught.value.hint
    assert "wide base" in caught.value.hint


def test_other_files_and_folders_are_no_adapters(folder):
    (folder / "README.md").write_text("notes")
    (folder / "manifest.json").write_text("{}")
    (folder / ".hidden.gguf").write_bytes(b"")
    (folder / "eval").mkdir()
    (folder / "eval" / "data.jsonl").write_text("{}")
    pool = open_pool(folder)
    assert len(pool.names) == 4
    assert pool.problems == ()


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("old.bin", lambda p: p.write_bytes(b"x"), "pickle"),
        ("old.pt", lambda p: p.write_bytes(b"x"), "pickle"),
        ("lone.safetensors", lambda p: p.write_bytes(b"x"), "lone safetensors"),
        ("x.gguf", lambda p: p.mkdir(), "it is a folder, not a file"),
        ("loop", lambda p: p.symlink_to(p), "leads back to itself"),
        ("dangling", lambda p: p.symlink_to("nowhere"), "a link to nowhere, which is not there"),
        ("bell\a.gguf", lambda p: p.write_bytes(b"x"), "characters that cannot be shown"),
        ("\udcff.gguf", lambda p: p.write_bytes(b"x"), "characters that cannot be shown"),
        (
            "empty-config",
            lambda p: [p.mkdir(), (p / "adapter_config.json").touch()],
            "adapter_conf",
        ),
    ],
)
def test_what_looks_like_an_adapter_and_is_none_has_a_line(name, make, words, folder):
    make(folder / name)
    pool = open_pool(folder)
    (problem,) = pool.problems
    assert words in problem.reason
    assert str(problem).isprintable()
    assert len(pool.names) == 4


def test_adapters_one_level_below_are_found_and_deeper_ones_are_mentioned(folder):
    (folder / "more" / "still-more").mkdir(parents=True)
    write_gguf(folder / "more" / "deep.gguf")
    write_peft(folder / "more" / "deep-peft", seed=7)
    write_gguf(folder / "more" / "still-more" / "deeper.gguf")
    (folder / "more" / "notes.txt").write_text("nothing")
    pool = open_pool(folder)
    assert {"deep", "deep-peft"} < set(pool.names)
    assert "deeper" not in pool.names
    (problem,) = pool.problems
    assert problem.name == "still-more"
    assert "folders that deep are not searched" in problem.reason
    assert pool.origin("deep") == folder / "more" / "deep.gguf"


def test_what_each_is_wherever_it_lies(folder):
    (folder / "more").mkdir()
    write_gguf(folder / "more" / "deep.gguf")
    write_peft(folder / "more" / "deep-peft", seed=7)
    pool = open_pool(folder)
    kinds = {row["name"]: row["kind"] for row in check_json(pool)}
    assert kinds["deep"] == "gguf"
    assert kinds["deep-peft"] == "peft"
    for name in pool.names:
        assert kinds[name] == ("peft" if pool.origin(name).is_dir() else "gguf")


def test_a_name_that_is_there_on_both_levels_counts_once(folder):
    (folder / "more").mkdir()
    name = open_pool(folder).names[0]
    write_gguf(folder / "more" / f"{name}.gguf", seed=8)
    (problem,) = open_pool(folder).problems
    assert f"has the same name, {name}, and comes first" in problem.reason


def test_the_inside_of_an_adapter_is_not_searched(folder):
    peft = write_peft(folder / "trained", seed=7)
    write_peft(peft / "checkpoint-500", seed=8)
    pool = open_pool(folder)
    assert "trained" in pool.names
    assert "checkpoint-500" not in pool.names
    assert not pool.problems


def test_what_comes_one_level_below_is_noticed(folder):
    (folder / "more" / "coming").mkdir(parents=True)
    pool = open_pool(folder)
    assert not pool.has_changed()
    write_peft(folder / "more" / "coming", seed=9)
    assert pool.has_changed()
    assert pool.rescan().added == ("coming",)
    write_gguf(folder / "more" / "another.gguf")
    assert pool.has_changed()
    assert pool.rescan().added == ("another",)
    assert not pool.has_changed()


def test_links_to_adapters_elsewhere_are_followed(folder, tmp_path):
    (folder / "linked.gguf").symlink_to(write_gguf(tmp_path / "elsewhere.gguf"))
    (folder / "linked-peft").symlink_to(write_peft(tmp_path / "peft", seed=5))
    assert {"linked", "linked-peft"} <= set(open_pool(folder).names)


def test_links_out_of_the_folder_can_be_forbidden(tmp_path):
    folder, elsewhere = tmp_path / "adapters", tmp_path / "elsewhere"
    folder.mkdir(), elsewhere.mkdir()
    write_gguf(folder / "own.gguf")
    (folder / "to-own.gguf").symlink_to("own.gguf")
    (folder / "file.gguf").symlink_to(write_gguf(elsewhere / "file.gguf"))
    (folder / "peft").symlink_to(write_peft(elsewhere / "peft", seed=1))
    (folder / "other").symlink_to(elsewhere)  # a folder of adapters
    inside = write_peft(folder / "inside", seed=2)
    weights = inside / "adapter_model.safetensors"
    weights.rename(elsewhere / "weights")
    weights.symlink_to(elsewhere / "weights")
    settings = {"cache": tmp_path / "cache", "on_problem": lambda _problem: None}
    pool = Pool.open(folder, BASE, links_out=False, converter=FOR_POOL, **settings)
    assert pool.names == ("own", "to-own")
    assert {(p.name, p.reason) for p in pool.problems} == {
        (name, "a link that leads out of the folder") for name in ("file", "peft", "inside")
    }
    assert {"file", "peft", "inside"} < set(
        Pool.open(folder, BASE, converter=FOR_POOL, **settings).names
    )


def test_a_link_to_a_folder_above_is_harmless(folder):
    (folder / "up").symlink_to("..")
    (folder / "here").symlink_to(".")
    pool = open_pool(folder)
    assert len(pool.names) == 4
    assert not pool.problems


def test_of_two_with_one_name_the_gguf_file_is_used(folder):
    write_peft(folder / "reverse")
    write_gguf(folder / "reverse.GGUF")
    pool = open_pool(folder)
    assert len(pool.names) == 4
    used = pool.adapters["reverse"].path.name
    assert used == "reverse.GGUF"
    assert [problem.path.name for problem in pool.problems] == ["reverse", "reverse.gguf"]
    assert all("has the same name, reverse, and comes first" in p.reason for p in pool.problems)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_an_adapter_that_may_not_be_read(folder):
    (folder / "reverse.gguf").chmod(0)
    (problem,) = open_pool(folder).problems
    assert "cannot be read: Permission denied" in problem.reason


# --- folders that are no pool ------------------------------------------------------------------


def test_an_empty_folder(tmp_path):
    with pytest.raises(PoolError, match="there are no adapters in") as caught:
        open_pool(tmp_path)
    assert "logo-local convert" in caught.value.hint


def test_a_missing_folder(tmp_path):
    with pytest.raises(PoolError, match="does not exist"):
        open_pool(tmp_path / "nothing")


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(PoolError, match="is a file") as caught:
        open_pool(folder / "reverse.gguf")
    assert str(folder) in caught.value.hint


def test_a_folder_that_is_one_adapter(folder):
    with pytest.raises(PoolError, match="is itself one adapter") as caught:
        open_pool(folder / "translate")
    assert caught.value.hint.endswith(str(folder))


# --- the cache of converted adapters -----------------------------------------------------------


def converted(folder):
    return sorted((folder.parent / "cache" / "converted").iterdir())


def test_a_peft_folder_is_converted_once(folder, conversions):
    first = open_pool(folder)
    assert conversions == ["translate"]
    second = open_pool(folder)
    assert conversions == ["translate"]
    assert second.adapters == first.adapters
    assert len(converted(folder)) == 1
    assert second.adapters["translate"].rank_text == "2"


def test_the_converted_factors_are_those_of_the_folder(folder):
    from safetensors.numpy import load_file

    module = "base_model.model.model.layers.1.self_attn.q_proj"
    stored = load_file(folder / "translate" / "adapter_model.safetensors")
    adapter = open_pool(folder).adapters["translate"]
    a, _ = adapter.factors("blk.1.attn_q.weight")
    np.testing.assert_allclose(a, stored[f"{module}.lora_A.weight"], rtol=1e-3)
    assert adapter.scaling("blk.1.attn_q.weight") == 2.0


def test_the_cache_goes_by_content_and_base(folder, conversions):
    open_pool(folder)
    touch(folder / "translate" / "adapter_model.safetensors")
    (folder / "translate").rename(folder / "renamed")
    write_peft(folder / "copy")
    assert "renamed" in open_pool(folder).names
    assert conversions == ["translate"]
    write_peft(folder / "copy", seed=9)
    open_pool(folder)
    assert conversions == ["translate", "copy"]
    open_pool(folder, g.base_model(n_head=8))
    assert conversions == ["translate", "copy", "copy", "renamed"]


def test_the_cache_goes_by_the_converter(folder, conversions):
    open_pool(folder)
    open_pool(folder, converter=FOR_POOL._replace(version=FOR_POOL.version + 1))
    assert conversions == ["translate", "translate"]


def test_a_damaged_cache_file_is_made_anew(folder, conversions, caplog):
    open_pool(folder)
    (file,) = converted(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    pool = open_pool(folder)
    assert conversions == ["translate", "translate"]
    assert file.read_bytes() == whole
    assert "translate" in pool.names
    assert "recreated" in caplog.text


def test_a_failed_conversion_leaves_nothing(folder):
    write_peft(folder / "translate", config={"use_dora": True})
    assert "translate" not in open_pool(folder).names
    assert converted(folder) == []


def test_without_a_cache_adapters_are_converted_into_a_temporary_folder(
    folder, conversions, caplog
):
    """They used to be left out where the cache could not be written."""
    (folder.parent / "cache").write_text("a file in the way")
    write_peft(folder / "other", rank=3)
    pool = open_pool(folder)
    assert (pool.problems, sorted(conversions)) == ((), ["other", "translate"])
    assert pool.adapters["translate"].path.is_file()
    (line,) = [one for one in caplog.messages if "converted at each start" in one]
    assert "cannot be written" in line
    open_pool(folder)  # within this process they stay
    assert len(conversions) == 2


def test_a_pool_of_gguf_files_needs_no_converter(folder):
    import subprocess
    import sys

    code = "import sys, logo_local.files.pool; print('logo_local.convert' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- looking again -----------------------------------------------------------------------------


def test_rescan_of_an_unchanged_folder_reads_nothing(folder, monkeypatch):
    pool = open_pool(folder)
    before = pool.adapters
    monkeypatch.setattr("logo_local.files.pool.read_adapter", None)
    calls = []
    changes = pool.rescan(progress=lambda *call: calls.append(call))
    assert not changes
    assert changes == Changes((), (), ())
    assert pool.adapters is before
    assert calls == []


def test_rescan_sees_what_was_added_removed_and_changed(folder):
    pool = open_pool(folder)
    before = pool.adapters
    kept = before["upper-case"]
    write_gguf(folder / "new.gguf")
    (folder / "reverse.gguf").unlink()
    write_gguf(folder / "sort-words.gguf", rank=7)
    changes = pool.rescan()
    assert changes == Changes(added=("new",), removed=("reverse",), changed=("sort-words",))
    assert pool.names == ("new", "sort-words", "translate", "upper-case")
    assert pool.adapters["sort-words"].rank_text == "7"
    assert pool.adapters["upper-case"] is kept
    assert pool.adapters is not before
    assert "reverse" in before


def test_rescan_sees_a_write_of_the_same_size(folder):
    pool = open_pool(folder)
    write_gguf(folder / "reverse.gguf", seed=77)
    touch(folder / "reverse.gguf")
    assert pool.rescan().changed == ("reverse",)


def test_rescan_converts_a_changed_peft_folder(folder, conversions):
    pool = open_pool(folder)
    write_peft(folder / "translate", rank=3)
    assert pool.rescan().changed == ("translate",)
    assert pool.adapters["translate"].rank_text == "3"
    assert conversions == ["translate", "translate"]


def test_rescan_after_the_cache_was_emptied(folder, conversions):
    pool = open_pool(folder)
    for file in converted(folder):
        file.unlink()
    pool.rescan()
    assert conversions == ["translate", "translate"]
    assert pool.adapters["translate"].path.exists()


def test_rescan_reports_new_problems_only(folder):
    (folder / "broken.gguf").write_bytes(b"GGUF")
    seen = []
    pool = open_pool(folder, on_problem=seen.append)
    assert [problem.name for problem in seen] == ["broken"]
    pool.rescan()
    assert len(seen) == 1
    (folder / "worse.gguf").write_bytes(b"GGUF")
    pool.rescan()
    assert [problem.name for problem in seen] == ["broken", "worse"]
    write_gguf(folder / "broken.gguf")
    assert pool.rescan().added == ("broken",)
    assert [problem.name for problem in pool.problems] == ["worse"]


def test_a_rescan_that_finds_nothing_usable_changes_nothing(folder):
    pool = open_pool(folder)
    before = pool.adapters
    for file in folder.glob("*.gguf"):
        file.write_bytes(b"GGUF")
    (folder / "translate" / "adapter_config.json").unlink()
    with pytest.raises(PoolError) as caught:
        pool.rescan()
    assert len(caught.value.problems) == 4
    assert pool.adapters is before
    assert pool.problems == ()


# --- pins and exclusions -----------------------------------------------------------------------


def test_pins_narrow_the_candidates(folder):
    pool = open_pool(folder)
    pool.pin("translate")
    pool.pin("reverse")
    assert pool.pinned == pool.candidates == ("reverse", "translate")
    pool.auto()
    assert pool.candidates == pool.names


def test_exclusions_leave_the_rest(folder):
    pool = open_pool(folder)
    pool.exclude("translate")
    assert pool.excluded == ("translate",)
    assert pool.candidates == ("reverse", "sort-words", "upper-case")
    for name in pool.names:
        pool.exclude(name)
    assert pool.candidates == ()


def test_the_later_word_counts(folder):
    pool = open_pool(folder)
    pool.exclude("reverse")
    pool.pin("reverse")
    assert (pool.pinned, pool.excluded, pool.candidates) == (("reverse",), (), ("reverse",))
    pool.exclude("reverse")
    assert (pool.pinned, pool.excluded) == ((), ("reverse",))
    assert "reverse" not in pool.candidates


def test_pins_and_exclusions_survive_a_rescan_where_the_name_does(folder, caplog):
    pool = open_pool(folder)
    pool.pin("reverse")
    pool.pin("translate")
    pool.exclude("sort-words")
    (folder / "reverse.gguf").unlink()
    write_gguf(folder / "sort-words.gguf", rank=7)
    pool.rescan()
    assert (pool.pinned, pool.excluded) == (("translate",), ("sort-words",))
    assert "reverse is gone" in caplog.text


@pytest.mark.parametrize("method", ["pin", "exclude"])
def test_an_unknown_name_is_an_error_with_near_ones(method, folder):
    pool = open_pool(folder)
    with pytest.raises(PoolError, match="there is no adapter 'sort-word'") as caught:
        getattr(pool, method)("sort-word")
    assert caught.value.hint == (
        "did you mean sort-words? the adapters are: reverse, sort-words, translate, upper-case"
    )
    with pytest.raises(PoolError) as caught:
        getattr(pool, method)("zzz")
    assert caught.value.hint == "the adapters are: reverse, sort-words, translate, upper-case"
    assert (pool.pinned, pool.excluded) == ((), ())


def test_peft_folders_made_by_peft_itself(tiny_model, tmp_path):
    """Every adapter that PEFT saved for the tiny Hugging Face models, each with its own rank."""
    base = BaseModel.read(tiny_model.gguf)
    folder = next(iter(tiny_model.adapters.values())).parent
    pool = Pool.open(folder, base, cache=tmp_path / "cache", converter=FOR_POOL)
    assert pool.names == tuple(sorted(tiny_model.adapters))
    assert pool.problems == ()
    assert pool.adapters["patterns"].rank_text == "3-10"
