"""A real llama-server in a process of its own: llama.cpp's, as the package xllamacpp brings it.

python tests/llama_server.py MODEL ADAPTER... runs one and prints its address.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx

IS_INSTALLED = importlib.util.find_spec("xllamacpp") is not None
API_KEY = "upstream-secret"


def main(
    model: str, slots: str, context: str, cache: str, key: str, threads: str, *adapters: str
) -> None:
    """llama-server with `--lora ADAPTER ... --lora-init-without-apply`, until its input ends."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.port, params.n_parallel, params.n_ctx = 0, int(slots), int(slots) * int(context)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = int(threads)
    params.warmup = params.ui = params.fit_params = False
    params.verbosity = 0
    params.cache_ram_mib = int(cache)
    if key:
        params.api_keys = [key]
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 1.0) for path in adapters]
    params.lora_init_without_apply = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


@contextmanager
def llama_server(
    model: Path,
    adapters: Sequence[Path],
    *,
    slots: int = 2,
    context: int = 512,
    cache: int = 0,
    key: str = "",
    threads: int = 1,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Within this block it runs: its process and its address.

    `context` is that of one slot in tokens, `cache` the --cache-ram in MiB.
    """
    numbers = (str(slots), str(context), str(cache))
    arguments = [str(model), *numbers, key, str(threads), *map(str, adapters)]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, f"it ended: {process.wait()}"
        deadline = time.monotonic() + 60
        while httpx.get(f"{address}/health", trust_env=False).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.communicate()


if __name__ == "__main__":
    main(*sys.argv[1:])
