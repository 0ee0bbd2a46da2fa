"""Runs the tests with layers on a GPU: LOGO_TEST_GPU_LAYERS=-1 for all, 3 for the last three.

`make gpu-check` does this. Without the variable, models are on the CPU, also where there is a GPU.
"""

import functools
import os

import llama_cpp
import pytest

VARIABLE = "LOGO_TEST_GPU_LAYERS"
LAYERS = int(os.environ.get(VARIABLE) or 0)


def tolerance(on_cpu: float, on_gpu: float) -> float:
    """How much numbers may differ. A GPU adds in an order that depends on the size of a batch, and
    llama.cpp's code for it rounds some activations to float16.
    """
    return on_gpu if LAYERS else on_cpu


def place_models() -> None:
    """Make LAYERS the number of layers of every `Llama` and `LoGo` that is given none.

    Ends the test run if layers are asked for and llama.cpp has no GPU.
    """
    from logo_local.llama import devices

    if LAYERS and not devices.gpus():
        found = ", ".join(devices.backends())
        pytest.exit(
            f"{VARIABLE} is {LAYERS}, and llama.cpp found no GPU (it supports {found})",
            returncode=3,
        )
    devices.ALL_LAYERS = LAYERS
    create = llama_cpp.Llama.__init__

    @functools.wraps(create)
    def create_placed(self, *args, **arguments):
        create(self, *args, **{"n_gpu_layers": LAYERS, **arguments})

    if LAYERS:
        llama_cpp.Llama.__init__ = create_placed
