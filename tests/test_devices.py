"""Which devices layers are placed on, and what is said about it."""

import pytest

from logo_local.console import opening
from logo_local.errors import ModelError
from logo_local.files.base_model import BaseModel
from logo_local.llama import devices
from logo_local.llama.devices import Device, offloading, placed
from logo_local.llama.llama_errors import model_errors
from logo_local.routing.settings import RoutingSettings

CPU = Device("CPU", "a processor", "CPU", "CPU")
BLAS = Device("BLAS", "OpenBLAS", "accelerator", "BLAS")
RADEON = Device("Vulkan0", "Radeon", "GPU", "Vulkan")
ARC = Device("Vulkan1", "Arc", "GPU", "Vulkan")
REMOTE = Device("RPC0", "192.168.0.2:50052", "GPU", "RPC")
INSIDE, SAME = (Device(f"Vulkan{i}", "UHD", "integrated GPU", "Vulkan") for i in range(2))
SYCL = Device("SYCL0", "UHD", "integrated GPU", "SYCL")


@pytest.fixture
def have(monkeypatch):
    """have(*devices): what llama.cpp lists, besides the CPU."""

    def make(*found):
        monkeypatch.setattr(devices, "ALL_LAYERS", -1)  # see gpu_layers.py
        monkeypatch.setattr(devices, "devices", lambda: [*found, CPU])

    return make


def test_the_cpu_is_always_listed():
    found = devices.devices()
    assert [one.kind for one in found if one.name == "CPU"] == ["CPU"]
    assert found[-1].backend == "CPU"
    free, total = found[-1].memory()
    assert 0 < free <= total
    assert "CPU" in devices.backends()


@pytest.mark.parametrize(
    ("found", "used"),
    [
        ([], []),
        ([BLAS], []),
        ([RADEON, ARC], [RADEON, ARC]),
        ([INSIDE, RADEON], [RADEON]),
        ([INSIDE, SAME, SYCL], [INSIDE, SAME]),
        ([RADEON, REMOTE], [REMOTE, RADEON]),
        ([INSIDE, REMOTE], [REMOTE, INSIDE]),
    ],
)
def test_layers_are_placed_on_gpus_as_llama_cpp_does(have, found, used):
    have(*found)
    assert devices.gpus() == used


def test_all_layers_are_placed_on_a_gpu_by_default(have):
    have(RADEON)
    assert placed({"seed": 1}) == {"seed": 1, "n_gpu_layers": -1}
    assert placed({"n_gpu_layers": None})["n_gpu_layers"] == -1
    assert placed({"n_gpu_layers": 3}) == {"n_gpu_layers": 3}


def test_without_a_gpu_or_with_0_layers_only_the_cpu_is_used(have):
    have(RADEON)
    assert placed({"n_gpu_layers": 0}) == {"n_gpu_layers": 0, "op_offload": False}
    assert placed({"n_gpu_layers": 0, "op_offload": True})["op_offload"] is True
    have()
    assert placed({}) == {"n_gpu_layers": 0, "op_offload": False}


@pytest.mark.parametrize(
    ("layers", "found", "line"),
    [
        (None, [RADEON], "Offloading all layers to Radeon (Vulkan0)"),
        (-1, [RADEON, ARC], "Offloading all layers to Radeon (Vulkan0), Arc (Vulkan1)"),
        (3, [RADEON], "Offloading up to 3 layers to Radeon (Vulkan0)"),
        (0, [RADEON], ""),
        (None, [], ""),
        (3, [BLAS], ""),
    ],
)
def test_the_line_names_the_devices(have, layers, found, line):
    have(*found)
    assert offloading(layers) == line


@pytest.mark.parametrize(
    ("layers", "found", "says"),
    [
        (None, [RADEON], "Offloading all layers to Radeon (Vulkan0)\n"),
        (0, [RADEON], ""),
        (None, [], ""),
        (3, [], "warning: no GPU was found, see logo-local doctor; --gpu-layers has no effect\n"),
    ],
)
def test_opening_an_engine_says_where_layers_are(have, monkeypatch, capsys, layers, found, says):
    have(*found)
    opening._aside_once.cache_clear()
    monkeypatch.setattr("logo_local.engine.LoGo", lambda *_, **settings: settings)
    for _ in range(2 if found else 1):  # several engines of a server: one line
        opening.open_engine("m.gguf", None, n_gpu_layers=layers)
    assert capsys.readouterr().err == says


def test_a_model_that_does_not_fit_says_what_to_type(random_base):
    base = BaseModel.read(random_base)
    hints = []
    for offloads in (True, False):
        with (
            pytest.raises(ModelError, match="no context") as caught,
            model_errors("m.gguf", base, offloads=offloads),
        ):
            raise ValueError("no context")
        hints.append(caught.value.hint)
    assert "--gpu-layers N with N below 4" in hints[0]
    assert "--gpu-layers" not in hints[1]


def test_a_failed_allocation_names_gpu_layers_only_where_there_is_a_gpu(have):
    have(RADEON)
    assert devices.too_little_memory().endswith("try a smaller --ctx-size, or a lower --gpu-layers")
    have()
    assert devices.too_little_memory().endswith("try a smaller --ctx-size")


class Params:
    n_gpu_layers = -1


def test_automatic_memory_for_adapters_is_within_a_gpus(have, monkeypatch):
    monkeypatch.setattr(Device, "memory", lambda _self: (400, 1000))
    have(RADEON, ARC)
    free = devices.free_gpu_memory(Params)
    assert free == 800
    assert RoutingSettings().memory_within(free) == 200
    assert RoutingSettings(adapter_memory=500).memory_within(free) == 500
    have()
    assert devices.free_gpu_memory(Params) is None
    assert RoutingSettings().memory_within(None) > 2**20
