"""The engine as a process beside your app, with nothing but Python's standard library.

    python examples/jsonl_client.py "a prompt" [MODEL ADAPTERS]

Streams the answer to standard output and says on standard error what it was blended from; Ctrl+C
cancels the answer. Needs `logo-local` in the PATH; the protocol is in docs/embedding.md.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any


class Client:
    """One engine. Asks one thing at a time: what happens comes as events, dictionaries."""

    def __init__(self, model: str = "demo", adapters: str | None = None) -> None:
        command = ["logo-local", "run", model, "--jsonl"]
        command += ["--adapters", adapters] if adapters else []
        pipe = subprocess.PIPE
        # A session of its own: Ctrl+C in a terminal is for this program to pass on.
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, encoding="utf-8", start_new_session=True
        )
        self._ids = itertools.count(1)
        self.ready = self._next("ready")

    def ask(self, prompt: str, **options: Any) -> Iterator[dict[str, Any]]:
        """The events of one answer as they come. Closing the iterator cancels the answer."""
        number = next(self._ids)
        self._send({"id": number, "prompt": prompt, **options})
        ended = False
        try:
            while not ended:
                event = self._next()
                if event.get("id") == number:
                    ended = event["event"] in ("done", "error")
                    yield event
        finally:
            if not ended:
                self._send({"cancel": number})
                while not (event["event"] in ("done", "error") and event.get("id") == number):
                    event = self._next()

    def close(self) -> None:
        """End the process, and wait for it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _next(self, wanted: str | None = None) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event: dict[str, Any] = json.loads(line)
            if wanted is None or event["event"] == wanted:
                return event
        raise EOFError("the engine has ended; standard error says why")


def main(prompt: str, *engine: str) -> None:
    """Answer one prompt."""
    try:
        engine_process = Client(*engine)
    except FileNotFoundError:
        sys.exit("jsonl_client.py: there is no logo-local in the PATH")
    with engine_process as client:
        events = client.ask(prompt, max_tokens=256)
        try:
            for event in events:
                if event["event"] == "token":
                    print(event["text"], end="", flush=True)
                elif event["event"] == "route":
                    blend = [f"{a['name']} {a['weight']:.2f}" for a in event["route"]["adapters"]]
                    print(" · ".join(blend) or "the base alone", file=sys.stderr)
                elif event["event"] == "error":
                    sys.exit(event["message"])
            print()
        except KeyboardInterrupt:
            print()
        finally:
            events.close()  # type: ignore[attr-defined]  # it is a generator


if __name__ == "__main__":
    main(*sys.argv[1:])
