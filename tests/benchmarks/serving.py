"""The server under load, and what it costs over the engine. On the bundled model.

    python tests/benchmarks/serving.py load [--seconds 300] [--clients 50]
    python tests/benchmarks/serving.py churn [--seconds 60]
    python tests/benchmarks/serving.py overhead

`load`: clients with mixed prompts, streaming and not, some of which go in mid-stream. Every whole
answer must be the one that the engine gives by itself, begun anew, at temperature 0. `churn`: the
same while adapters come and go, of which only the statuses are looked at. `overhead`: the same
requests to the engine and through the server in turn. Ends with exit code 1 where something that
must hold does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil

from logo_local import config
from logo_local.engine import LoGo

N_PROMPTS = 81
DROPPED = 0.03  # of the streams
ENGINE = {"n_threads": 1, "n_threads_batch": 1, "self_profile": "kept", "past": False}


def requests() -> list[dict]:
    """Bodies with prompts of every task: routed, by the base, by one adapter, by given weights."""
    found = []
    for path in sorted(config.demo_adapters().glob("*.prompts.jsonl")):
        for line in path.read_text("utf-8").splitlines()[:4]:
            row = json.loads(line)
            body = {"messages": [{"role": "user", "content": row["context"]}], "max_tokens": 64}
            found.append(body)
    random.Random(1).shuffle(found)
    others = ({"model": "base"}, {"model": "base:plural"}, {"lora": {"negation": 0.5}})
    for i, body in enumerate(found[:N_PROMPTS]):
        if i % 4 == 3:
            body |= others[i // 4 % 3]
    return found[:N_PROMPTS]


def alone(bodies: list[dict]) -> list[str]:
    """The answers of an engine that begins anew with each."""
    answers = []
    with LoGo("demo", **ENGINE) as llm:
        for body in bodies:
            llm.reset()
            weights = {"base": {}, "base:plural": {"plural": 1.0}}.get(
                body.get("model"), body.get("lora")
            )
            options = {"messages": body["messages"], "max_tokens": 64, "temperature": 0}
            if weights is None:
                answer = llm.create_chat_completion(**options)
            else:
                with llm.under(weights):
                    answer = llm.create_chat_completion(**options)
            answers.append(answer["choices"][0]["message"]["content"])
    return answers


@contextmanager
def server(*arguments: str) -> Iterator[tuple[psutil.Process, str]]:
    """The program itself, in a process of its own; its address."""
    command = [sys.executable, "-m", "logo_local", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    try:
        address = next(m[0] for line in process.stderr if (m := re.search(r"http://\S+", line)))
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        print(process.stderr.read(), end="", file=sys.stderr)
        assert process.wait(60) == 0


class Load:
    """Many clients, and what they saw."""

    def __init__(self, address: str, bodies: list[dict], expected: list[str] | None) -> None:
        self.address, self.bodies, self.expected = address, bodies, expected
        self.statuses: Counter[object] = Counter()
        self.wrong: list[tuple[str, str]] = []
        self.waits: dict[int, list[float]] = defaultdict(list)  # ms in line, by client
        self.dropped = 0

    async def client(self, number: int, until: float) -> None:
        """Ask one thing after the other."""
        chance = random.Random(number)
        async with httpx.AsyncClient(base_url=self.address, timeout=120) as http:
            while time.monotonic() < until:
                which = chance.randrange(len(self.bodies))
                stream, drop = chance.random() < 0.5, chance.random() < DROPPED
                await self.ask(http, number, which, stream, stream and drop)

    async def ask(
        self, http: httpx.AsyncClient, number: int, which: int, stream: bool, drop: bool
    ) -> None:
        """One request: a text to compare, or a reason to come back later."""
        body = {**self.bodies[which], "stream": stream}
        try:
            async with http.stream("POST", "v1/chat/completions", json=body) as answer:
                self.statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    await asyncio.sleep(float(answer.headers["retry-after"]))
                    return
                if answer.status_code != 200:
                    print(answer.status_code, (await answer.aread()).decode(), file=sys.stderr)
                    return
                if drop:
                    async for _ in answer.aiter_bytes():
                        break
                    self.dropped += 1
                    return
                raw = (await answer.aread()).decode()
        except httpx.HTTPError as error:
            self.statuses[type(error).__name__] += 1
            return
        text, logo = whole(raw) if stream else of_one(json.loads(raw))
        self.waits[number].append(logo["timings_ms"]["wait"])
        if self.expected is not None and text != self.expected[which]:
            self.wrong.append((text, self.expected[which]))


def whole(raw: str) -> tuple[str, dict]:
    """Text and route of a stream of events."""
    chunks = [json.loads(e.removeprefix("data: ")) for e in raw.split("\n\n")[:-2]]
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks), chunks[-1]["logo"]


def of_one(answer: dict) -> tuple[str, dict]:
    """Text and route of a whole answer."""
    return answer["choices"][0]["message"]["content"], answer["logo"]


async def with_memory(load: Load, process: psutil.Process, clients: int, seconds: float) -> list:
    """Run the clients; the server's memory in MB every five seconds."""
    until = time.monotonic() + seconds
    tasks = [asyncio.create_task(load.client(i, until)) for i in range(clients)]
    memory = []
    while time.monotonic() < until:
        await asyncio.sleep(5)
        memory.append(process.memory_info().rss / 2**20)
    await asyncio.gather(*tasks)
    return memory


def report(load: Load, memory: list[float], seconds: float) -> bool:
    """Print what was seen; whether all of it is as it must be."""
    waits = [ms for of_client in load.waits.values() for ms in of_client]
    means = [statistics.mean(of_client) for of_client in load.waits.values()]
    mean, ordered = statistics.mean(waits), sorted(waits)
    after = memory[min(12, len(memory) - 1)]  # the first minute is for warming up
    growth = memory[-1] / after - 1
    others = {status: n for status, n in load.statuses.items() if status not in (200, 429)}
    print(f"answers: {len(waits)} whole, {load.dropped} left in mid-stream, in {seconds:.0f} s")
    print(f"statuses: {dict(load.statuses)}")
    print(f"answers that differ from the engine's own: {len(load.wrong)}")
    for got, expected in load.wrong[:5]:
        print(f"  {got!r} instead of {expected!r}")
    print(
        f"in line: mean {mean:.0f} ms, p50 {ordered[len(ordered) // 2]:.0f}, "
        f"p99 {ordered[int(len(ordered) * 0.99)]:.0f}, longest {ordered[-1]:.0f}; "
        f"means of single clients {min(means):.0f} to {max(means):.0f}"
    )
    print(f"memory: {after:.1f} MB after the first minute, {memory[-1]:.1f} at the end, "
          f"{growth:+.2%}")  # fmt: skip
    fair = max(ordered[int(len(ordered) * 0.99)], max(means)) <= 3 * mean
    return not others and not load.wrong and fair and growth < 0.02


def load(seconds: float, clients: int) -> bool:
    """Right answers, flat memory, fair turns."""
    bodies = requests()
    expected = alone(bodies)
    print(f"{len(bodies)} requests, {clients} clients, a line of 40")
    with server("demo", "--queue", "40") as (process, address):
        asked = Load(address, bodies, expected)
        memory = asyncio.run(with_memory(asked, process, clients, seconds))
    return report(asked, memory, seconds)


def churn(seconds: float, clients: int) -> bool:
    """Adapters come, change and go all the while."""

    async def change(folder: Path, until: float) -> int:
        n, adapters = 0, sorted(config.demo_adapters().glob("*.gguf"))
        while time.monotonic() < until:
            target = folder / f"new-{n % 5}.gguf"
            if target.exists():
                target.unlink()
            else:
                partial = target.with_suffix(".part")
                shutil.copy(adapters[n % len(adapters)], partial)
                partial.rename(target)
            n += 1
            await asyncio.sleep(0.2)
        return n

    async def both(asked: Load, process: psutil.Process, folder: Path) -> tuple[int, list]:
        return await asyncio.gather(
            change(folder, time.monotonic() + seconds),
            with_memory(asked, process, clients, seconds),
        )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "adapters"
        shutil.copytree(config.demo_adapters(), folder)
        model = str(config.demo_model())
        with server(model, "--adapters", str(folder), "--queue", "40") as (process, address):
            asked = Load(address, requests(), None)
            n_changes, _ = asyncio.run(both(asked, process, folder))
    print(f"{n_changes} changes of the folder; statuses: {dict(asked.statuses)}")
    return not {s for s in asked.statuses if s not in (200, 429)}


def other(llm: LoGo, http: httpx.Client, address: str) -> None:
    """Let both engines read something else, under another route."""
    llm.create_completion("x", max_tokens=1, temperature=0.0)
    http.post(f"{address}v1/completions", json={"prompt": "x", "max_tokens": 1})


def overhead() -> bool:
    """What a request and a token cost beyond the engine, medians of requests in turn.

    Compared are the times without the engine's own phases, which it reports: two processes that
    take turns find their caches cold, which is not the server's doing. The whole times are printed
    beside it.
    """
    words = [{"role": "user", "content": "Sort flute, cat, frog, hammer from A to Z."}]
    schema = {"type": "string", "minLength": 600, "maxLength": 620}
    long = {"type": "json_schema", "json_schema": {"schema": schema}}
    wall: dict[str, list[float]] = defaultdict(list)
    rest: dict[str, list[float]] = defaultdict(list)
    with LoGo("demo", **ENGINE) as llm, server("demo") as (_, address), httpx.Client() as http:
        from logo_local.server.structured import grammar_for

        def by_server(**body: object) -> list[dict]:
            url = f"{address}v1/chat/completions"
            with http.stream("POST", url, json={"messages": words, **body}) as answer:
                lines = list(answer.iter_lines())
            return [json.loads(line.removeprefix("data: ")) for line in lines if line[-1:] == "}"]

        def by_engine(**options: object) -> list[dict]:
            options = {"messages": words, "temperature": 0.0, "max_tokens": 512} | options
            answer = llm.create_chat_completion(**options)
            return [answer] if isinstance(answer, dict) else list(answer)

        def timed(name: str, call: object, **options: object) -> int:
            started = time.perf_counter()
            chunks = call(**options)
            took = 1000 * (time.perf_counter() - started)
            phases = chunks[-1]["logo"]["timings_ms"]
            wall[name].append(took)
            rest[name].append(took - sum(v for k, v in phases.items() if k != "load"))
            return len(chunks)

        n = 0
        for i in range(100):
            other(llm, http, address)
            timed("engine", by_engine, max_tokens=1)
            timed("server", by_server, max_tokens=1)
            started = time.perf_counter()
            http.get(f"{address}health").read()
            wall["nothing"].append(1000 * (time.perf_counter() - started))
            if i % 4 == 0:
                other(llm, http, address)
                grammar = grammar_for(schema, "")
                timed("engine, long", by_engine, stream=True, grammar=grammar)
                n = timed("server, long", by_server, stream=True, response_format=long)
    for kind, times in (("in all", wall), ("without the engine's phases", rest)):
        median = {name: statistics.median(values[2:]) for name, values in times.items()}
        request = median["server"] - median["engine"]
        token = (median["server, long"] - median["engine, long"] - request) / n
        print(f"{kind}: one token {median['engine']:.2f} and {median['server']:.2f} ms, "
              f"{n} as a stream {median['engine, long']:.1f} and {median['server, long']:.1f}; "
              f"the server costs {request:.2f} ms a request, {token:.3f} ms a token")  # fmt: skip
    print(f"HTTP itself, both ends of it: {statistics.median(wall['nothing']):.2f} ms")
    return request < 3 and token < 0.2


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("load", "churn", "overhead"))
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=50)
    given = parser.parse_args()
    if given.what == "overhead":
        good = overhead()
    else:
        good = {"load": load, "churn": churn}[given.what](given.seconds, given.clients)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
