"""Files that another program truncates while they are read: an error, never a signal."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_gguf import write_adapter, write_base
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from logo_local.convert.peft_config import Findings
from logo_local.convert.stored import read_header

# The file is truncated once its first bytes were read, at the same place each time.
TRUNCATING = """
import os, sys
import gguf
from logo_local.errors import LogoError
from logo_local.files.adapter_file import read_adapter
from logo_local.files.base_model import BaseModel

base, path = sys.argv[1:]
model = BaseModel.read(base)
whole = gguf.GGUFReader._build_fields

def truncating(self, *args):
    os.truncate(path, 0)
    return whole(self, *args)

gguf.GGUFReader._build_fields = truncating
try:
    BaseModel.read(path) if path.endswith("model.gguf") else read_adapter(path, model)
except LogoError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_file_that_is_truncated_while_its_header_is_read_is_an_error(tmp_path, kind):
    base = write_base(tmp_path / "base.gguf")
    path = tmp_path / f"{kind}.gguf"
    if kind == "adapter":
        write_adapter(path, 1)
    else:
        write_base(path)
        path.write_bytes(with_a_long_header(path.read_bytes()))
    command = [sys.executable, "-c", TRUNCATING, str(base), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "became shorter while it was read" in done.stdout


def with_a_long_header(data):
    """The same model with a key of 200,000 characters in front, more than is read at once."""
    key, text = b"general.description", b"x" * 200_000
    added = len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little")
    added += len(text).to_bytes(8, "little") + text
    n_keys = int.from_bytes(data[16:24], "little") + 1
    return data[:16] + n_keys.to_bytes(8, "little") + added + data[24:]


def refused_by_library(path):
    try:
        with safe_open(str(path), framework="numpy"):
            return False
    except (SafetensorError, OSError, ValueError):
        return True


@settings(max_examples=300)
@given(st.data())
def test_headers_of_safetensors_are_refused_where_the_library_refuses_them(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("mutated") / "x.safetensors"
    tensors = {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float16)}
    save_file(tensors, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    kind = data.draw(st.sampled_from(["offsets", "shape", "length", "cut", "byte"]))
    if kind == "offsets":
        header["a"]["data_offsets"][data.draw(st.integers(0, 1))] += data.draw(st.integers(-9, 9))
    elif kind == "shape":
        header["b"]["shape"] = data.draw(st.lists(st.integers(0, 5), max_size=3))
    text = json.dumps(header).encode()
    if kind in ("offsets", "shape"):
        raw = len(text).to_bytes(8, "little") + text + raw[8 + length :]
    elif kind == "length":
        raw = (length + data.draw(st.integers(-60, 60))).to_bytes(8, "little") + raw[8:]
    elif kind == "cut":
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    else:
        at = data.draw(st.integers(8, 7 + length))
        raw = raw[:at] + bytes([data.draw(st.integers(32, 126))]) + raw[at + 1 :]
    path.write_bytes(raw)
    findings = Findings()
    read_header(path, findings)
    if refused_by_library(path):
        assert findings.problems
    elif all(tensor["dtype"] in ("F32", "F16") for tensor in header.values()) and kind != "byte":
        assert findings.problems == []


def test_a_safetensors_file_that_is_gone_is_a_finding(tmp_path):
    findings = Findings()
    assert read_header(tmp_path / "none.safetensors", findings) == []
    assert os.strerror(2) in findings.problems[0]
