"""`serve --upstream` against the same llama-server asked directly, on SmolLM2 with the demo's pool.

    python tests/benchmarks/upstream.py speed [--rounds 3] [--clients 1 8] [--prompts 24]
    python tests/benchmarks/upstream.py loss [--seconds 60]

`speed`: the same prompts to the llama-server with the weights of their routes, and through a
server before it, in turn; 32 tokens each, without the upstream's prompt cache. Tokens per second,
the time to the first token, and the CPU time of both processes, which says more on a busy machine.
`loss`: two llama-servers under the load of eight clients, one of which is killed; whole answers and
streams, with their routes. Each process has one thread. Needs xllamacpp. Ends with exit code 1
where `loss` sees a wrong route or a lost request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil

from logo_local import config

sys.path.insert(0, str(Path(__file__).parents[1]))
from llama_server import llama_server

N_TOKENS = 32
CHAT = "/v1/chat/completions"
ONE_THREAD = ("--threads", "1")
# llama-server closes connections that were used often: each request has one of its own.
CLIENT = {"timeout": 600, "trust_env": False, "limits": httpx.Limits(max_keepalive_connections=0)}
ADAPTERS = sorted(config.demo_adapters().glob("*.gguf"))


def prompts(n: int) -> list[str]:
    """Example prompts of all adapters in turn."""
    rows = []
    for path in sorted(config.demo_adapters().glob("*.prompts.jsonl")):
        lines = path.read_text("utf-8").splitlines()
        rows.append([json.loads(line)["context"] for line in lines])
    mixed = [one for row in zip(*rows, strict=False) for one in row]
    random.Random(1).shuffle(mixed)
    return mixed[:n]


@contextmanager
def server(*arguments: str) -> Iterator[tuple[psutil.Process, str]]:
    """`logo-local serve` with these arguments: its process and its address."""
    command = [sys.executable, "-m", "logo_local", "serve", *arguments]
    process = subprocess.Popen(
        [*command, "--port", "0", "--queue", "64"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        found = next(m[1] for line in process.stderr if (m := re.search(r"at (http://\S+)/", line)))
        yield psutil.Process(process.pid), found
    finally:
        process.terminate()
        print(process.stderr.read(), end="", file=sys.stderr)
        process.wait(60)


def scales_of(route: Mapping, ids: Mapping[str, int]) -> list[dict]:
    """A route as llama-server takes it, all others at 0."""
    weights = {row["name"]: row["weight"] for row in route["adapters"]}
    return [{"id": number, "scale": weights.get(name, 0.0)} for name, number in ids.items()]


async def stream(http: httpx.AsyncClient, url: str, body: Mapping) -> tuple[float, int, dict]:
    """Seconds to the first text, number of tokens, and what the last chunk says of the route."""
    started, first, logo, usage = time.monotonic(), 0.0, {}, {}
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", url + CHAT, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content") and not first:
                first = time.monotonic() - started
            logo, usage = chunk.get("logo", logo), chunk.get("usage", usage)
    return first, usage["completion_tokens"], logo


def cpu(*processes: psutil.Process) -> float:
    """The CPU time that processes have used, in s."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def run(url: str, bodies: list[dict], clients: int) -> tuple[float, list[float], list[float]]:
    """Tokens per second over all; the times to the first token, and those of the probe, in s."""
    todo, firsts, probes, n_tokens = list(bodies), [], [], 0

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal n_tokens
        while todo:
            first, n, logo = await stream(http, url, todo.pop())
            n_tokens += n
            firsts.append(first)
            if logo:
                probes.append((logo["timings_ms"]["probe"] + logo["timings_ms"]["score"]) / 1000)

    started = time.monotonic()
    async with httpx.AsyncClient(**CLIENT) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return n_tokens / (time.monotonic() - started), firsts, probes


def speed(rounds: int, clients: list[int], n_prompts: int) -> None:
    """Direct and through the server in turn."""
    with (
        llama_server(config.demo_model(), ADAPTERS, slots=8, context=1024) as (child, url),
        server("demo", *ONE_THREAD, "--upstream", url) as (process, front),
    ):
        llama = psutil.Process(child.pid)
        ids = {
            Path(row["path"]).stem: row["id"] for row in httpx.get(f"{url}/lora-adapters").json()
        }
        common = {"temperature": 0, "max_tokens": N_TOKENS, "ignore_eos": True}
        routed, direct = [], []
        for prompt in prompts(n_prompts):
            body = {"messages": [{"role": "user", "content": prompt}]}
            found = httpx.post(f"{front}/v1/route", json=body, timeout=60).json()
            body |= {**common, "cache_prompt": False}
            routed.append(body)
            direct.append({**body, "lora": scales_of(found["route"], ids)})
        for n in clients:
            ratios, starts, costs = [], [], []
            for i in range(rounds):
                pair = [(url, direct), (front, routed)]
                order = pair[::-1] if i % 2 else pair
                found, used = {}, {}
                for one, bodies in order:
                    before = cpu(llama, process)
                    found[one] = asyncio.run(run(one, bodies, n))
                    used[one] = cpu(llama, process) - before
                costs.append(used[url] / used[front])
                (there, first, _), (here, first_here, probes) = found[url], found[front]
                ratios.append(here / there)
                medians = [1000 * statistics.median(x) for x in (first, first_here, probes)]
                starts.append((medians[1] - medians[2]) / medians[0])
                print(
                    f"{n} clients: direct {there:.1f} tokens/s, routed {here:.1f}, ratio "
                    f"{ratios[-1]:.2f}; first token {medians[0]:.0f} and {medians[1]:.0f} ms, of "
                    f"which the probe {medians[2]:.0f}; without it {starts[-1]:.2f}; CPU "
                    f"{used[url]:.1f} and {used[front]:.1f} s, ratio {costs[-1]:.2f}",
                    flush=True,
                )
            print(
                f"{n} clients, median of {rounds}: tokens/s {statistics.median(ratios):.2f} of "
                f"direct; first token without the probe {statistics.median(starts):.2f}; "
                f"tokens per CPU second {statistics.median(costs):.2f}",
                flush=True,
            )


def loss(seconds: float) -> bool:
    """Eight clients, two upstreams, one of which is killed after a third of the time."""
    seen: Counter[str] = Counter()
    wanted: dict[str, str] = {}

    async def client(front: str, number: int, until: float) -> None:
        chance = random.Random(number)
        async with httpx.AsyncClient(**CLIENT) as http:
            while time.monotonic() < until:
                prompt = chance.choice(list(wanted))
                body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0}
                body |= {"max_tokens": N_TOKENS, "stream": chance.random() < 0.25}
                answer = await http.post(front + CHAT, json=body)
                if answer.status_code != 200:
                    seen[f"status {answer.status_code}"] += 1
                elif answer.headers["x-logo-route"] != wanted[prompt]:
                    seen["wrong route"] += 1
                elif body["stream"] and "upstream_lost" in answer.text:
                    seen["streams that ended with an error"] += 1
                elif body["stream"] and not answer.text.endswith("data: [DONE]\n\n"):
                    seen["streams that ended without one"] += 1
                else:
                    seen["streams" if body["stream"] else "whole answers"] += 1

    async def load(front: str) -> None:
        started = time.monotonic()
        clients = [client(front, i, started + seconds) for i in range(8)]
        killing = asyncio.get_running_loop().call_later(seconds / 3, first.kill)
        await asyncio.gather(*clients)
        killing.cancel()

    settings = {"slots": 4, "context": 1024}
    with (
        llama_server(config.demo_model(), ADAPTERS, **settings) as (first, url),
        llama_server(config.demo_model(), ADAPTERS[::-1], **settings) as (_, other),
        server("demo", *ONE_THREAD, "--upstream", f"{url},{other}") as (_, front),
    ):
        for prompt in prompts(42):
            body = {"messages": [{"role": "user", "content": prompt}]}
            answer = httpx.post(f"{front}/v1/route", json=body, timeout=60)
            rows = answer.json()["route"]["adapters"]
            wanted[prompt] = ", ".join(f"{r['name']}={r['weight']:.4f}" for r in rows) or "base"
        asyncio.run(load(front))
        print(httpx.get(f"{front}/health").json())
    print(dict(seen))
    return not (seen.keys() - {"streams", "whole answers", "streams that ended with an error"})


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["speed", "loss"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=60)
    given = parser.parse_args()
    if given.what == "loss":
        sys.exit(not loss(given.seconds))
    speed(given.rounds, given.clients, given.prompts)


if __name__ == "__main__":
    main()
