"""Converted adapters that several processes make and use at once."""

import json
import os
import subprocess
import sys

import pytest
from peft_folder import factors, write_peft

from logo_local import LoGo
from logo_local.convert import FOR_POOL
from logo_local.errors import AdapterError
from logo_local.files.base_model import BaseModel
from logo_local.files.pool import Pool
from logo_local.files.whole_file import only_once

MODULES = {f"model.layers.{i}.self_attn.{kind}": (64, 64) for i in range(3) for kind in ["q_proj"]}


@pytest.fixture
def folder(tmp_path):
    write_peft(tmp_path / "pool" / "peft", factors(MODULES))
    return tmp_path / "pool"


def test_a_file_that_another_process_made_first_stays(tmp_path):
    out = tmp_path / "x"
    with only_once(out) as unfinished:
        unfinished.write_text("mine")
        out.write_text("the other's")
        before = out.stat().st_mtime_ns
    assert (out.read_text(), out.stat().st_mtime_ns) == ("the other's", before)
    out.unlink()
    with only_once(out) as unfinished:
        unfinished.write_text("mine")
    assert out.read_text() == "mine"
    assert os.listdir(tmp_path) == ["x"]


def test_processes_that_start_at_once_all_answer(folder, random_base, tmp_path):
    code = (
        "import sys\nfrom logo_local import LoGo\n"
        "with LoGo(*sys.argv[1:], n_ctx=256, n_threads=1, self_profile=False, past=False) as llm:\n"
        "    with llm.under({'peft': 1.0}):\n        llm.create_completion('hi', max_tokens=1)\n"
    )
    env = os.environ | {"LOGO_LOCAL_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code, str(random_base), str(folder)]
    running = [
        subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for _ in range(5)
    ]
    errors = [process.communicate()[1] for process in running]
    assert [process.returncode for process in running] == [0] * 5, errors


def test_a_converted_file_that_was_made_again_is_read_again(folder, random_base, tmp_path):
    pool = Pool.open(
        folder, BaseModel.read(random_base), cache=tmp_path / "cache", converter=FOR_POOL
    )
    adapter = pool.adapters["peft"]
    os.utime(adapter.path, ns=(1, 1))  # as another process would leave it
    with pytest.raises(AdapterError):
        adapter.check_unchanged()
    pool.rescan()
    pool.adapters["peft"].check_unchanged()


def test_a_peft_folder_that_is_overwritten_in_place_is_noticed(folder, random_base):
    settings = {"n_ctx": 256, "self_profile": False, "past": False}
    with LoGo(random_base, folder, **settings) as llm:

        def answer():
            with llm.under({"peft": 1.0}):
                return llm.create_completion("hi", max_tokens=8, temperature=0)["logo"]["route"]

        answer()
        before = llm.pool.adapters["peft"]
        path = folder / "peft" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))
        answer()
        after = llm.pool.adapters["peft"]
    assert (before.lora_alpha, after.lora_alpha) == (8.0, 64.0)
