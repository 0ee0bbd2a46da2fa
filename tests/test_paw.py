"""ProgramAsWeights files as adapters: unpacked, described by their specification, or refused."""

import json
import zipfile

import pytest
from random_gguf import write_adapter

from logo_local import LoGo
from logo_local.errors import AdapterError, PoolError
from logo_local.files.base_model import BaseModel
from logo_local.files.description import description_of
from logo_local.files.folder import kind_of
from logo_local.files.paw import specification, unpack_adapter
from logo_local.files.pool import Pool

SPEC = "Counts the words of a sentence.\nInput: a text."


def write_paw(
    path, adapter, meta=None, template="Count the words.\n{INPUT_PLACEHOLDER}\n", folder=""
):
    """A program as ProgramAsWeights writes it, with the GGUF file `adapter`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        if adapter is not None:
            archive.write(adapter, f"{folder}adapter.gguf")
        archive.writestr(f"{folder}prompt_template.txt", template)
        if meta is not None:
            archive.writestr(f"{folder}meta.json", json.dumps(meta))
    return path


@pytest.fixture
def adapter(tmp_path):
    write_adapter(tmp_path / "source.gguf", seed=3)
    return tmp_path / "source.gguf"


def test_a_program_is_an_adapter_like_the_file_in_it(random_base, adapter, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    write_paw(folder / "count.paw", adapter, {"spec": SPEC, "interpreter": "some/model"})
    (folder / "plain.gguf").write_bytes(adapter.read_bytes())
    with LoGo(random_base, folder, n_ctx=256) as llm:
        assert llm.pool.names == ("count", "plain")
        assert kind_of(llm.pool.origin("count")) == "paw"
        scores = llm.signal_scores("one two three", ["norm"])["norm"]
        assert scores["count"] == scores["plain"] > 0
        with llm.under({"count": 1.0}):
            one = llm("one two", max_tokens=6, temperature=0.0)["choices"][0]["text"]
        with llm.under({"plain": 1.0}):
            assert llm("one two", max_tokens=6, temperature=0.0)["choices"][0]["text"] == one
        assert llm.examples("count") == []
        assert description_of(llm.pool.origin("count")) == SPEC.partition("\n")[0]


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({"spec": SPEC}, SPEC),
        ({"description": "Counts."}, "Counts."),
        ({"spec": 7}, "Count the words."),
        (None, "Count the words."),
        ([1], "Count the words."),
    ],
)
def test_what_a_program_is_for(adapter, tmp_path, meta, expected):
    assert specification(write_paw(tmp_path / "x.paw", adapter, meta)) == expected


def test_the_files_may_lie_in_a_folder_of_the_archive(adapter, tmp_path):
    path = write_paw(tmp_path / "x.paw", adapter, {"spec": SPEC}, folder="program/")
    unpack_adapter(path, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_bytes() == adapter.read_bytes()
    assert specification(path) == SPEC


def test_a_program_that_is_replaced_is_read_again(random_base, adapter, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    path = write_paw(folder / "count.paw", adapter)
    pool = Pool.open(folder, BaseModel.read(random_base), cache=tmp_path / "cache")
    write_adapter(tmp_path / "other.gguf", seed=4, rank=7)
    write_paw(path, tmp_path / "other.gguf")
    with pytest.raises(AdapterError, match="has changed"):
        pool.check_current("count")
    assert pool.rescan().changed == ("count",)
    assert pool.adapters["count"].rank_text == "7"


@pytest.mark.parametrize("damage", ["no zip", "cut", "no adapter", "no gguf"])
def test_a_damaged_program_is_left_out_with_a_reason(random_base, adapter, tmp_path, damage):
    folder = tmp_path / "pool"
    folder.mkdir()
    path = folder / "count.paw"
    if damage == "no zip":
        path.write_bytes(b"hello")
    elif damage == "no adapter":
        write_paw(path, None)
    elif damage == "no gguf":
        (tmp_path / "text").write_text("hello")
        write_paw(path, tmp_path / "text")
    else:
        write_paw(path, adapter)
        path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(PoolError, match="none of the adapters") as caught:
        Pool.open(folder, BaseModel.read(random_base), cache=tmp_path / "cache")
    assert caught.value.problems[0].startswith("count.paw: ")
    assert len(caught.value.problems) == 1
    assert description_of(path) in ("", "Count the words.")
