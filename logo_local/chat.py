"""A conversation on a terminal: lines in, streamed answers out, and what was blended.

Kept simple: it knows neither click nor llama_cpp, and asks an engine (`ask.Engine`). Answers go
to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from . import report
from .ask import Answer, Engine, Message, Prompt, Sampling, has_chat_template, stream
from .errors import LogoError
from .terminal import err_console, print_error, say

PROMPT = ">>> "
HELP = """\
/why        the last route: every adapter's score
/adapters   the adapters that may be routed
/pin NAME   answer with this adapter only, until /auto
/auto       choose the adapters for each message again
/teach NAME remember your last message as an example of what NAME is for
/unteach NAME  forget the last example that NAME was taught
/clear      forget the conversation
/bye        leave (so does Ctrl+D)
/?          this help
Ctrl+C stops an answer. Anything else you type is sent to the model."""


def chat(
    llm: Engine,
    sampling: Sampling,
    *,
    explain: bool = False,
    raw: bool = False,
    read: Callable[[str], str] | None = None,
) -> None:
    """Talk until /bye or the end of input.

    With a chat template the conversation so far is part of each prompt; without one, or with
    `raw`, each line is completed by itself. `explain` shows the scores after each answer. `read`
    returns the next line and raises EOFError at the end; the default is `input`.
    """
    session = _Session(llm, sampling, explain, raw or not has_chat_template(llm), read or _read())
    try:
        session.run()
    finally:
        session.stop_reading()


def _read() -> Callable[[str], str]:
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  # gives input() a history and line editing
    return input


class _Session:
    def __init__(
        self, llm: Engine, sampling: Sampling, explain: bool, raw: bool, read: Callable[[str], str]
    ) -> None:
        self.llm = llm
        self.sampling = sampling
        self.explain = explain
        self.raw = raw
        self.read = read
        self.messages: list[Message] = []
        self.last = ""  # the last message, which /teach is about
        self.ahead: Thread | None = None  # reads the conversation while nobody asks

    def run(self) -> None:
        say("Send a message (/? for help)", "dim")
        if self.raw:
            say("Each line is completed by itself: there is no chat template in use", "dim")
        while True:
            try:
                line = self.read(PROMPT).strip()
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("\nCtrl+D or /bye leaves", "dim")
                continue
            self.stop_reading()
            if line == "/bye":
                return
            if line.startswith("/"):
                self.command(line)
            elif line:
                self.turn(line)

    def read_ahead(self) -> None:
        """Use the time in which the answer is read: the next route will cost less."""

        def read(messages: list[Message]) -> None:
            with suppress(LogoError):  # whatever it is, the next message will meet it too
                self.llm.read_ahead(messages)

        self.ahead = Thread(target=read, args=(list(self.messages),), daemon=True)
        self.ahead.start()

    def stop_reading(self) -> None:
        """Wait until the engine is free."""
        while self.ahead is not None and self.ahead.is_alive():
            with suppress(KeyboardInterrupt):  # nothing may be freed under its feet
                self.ahead.join()
        self.ahead = None

    def command(self, line: str) -> None:
        if line in ("/?", "/help"):
            say(HELP)
        elif line == "/clear":
            self.messages = []
            say("The conversation is forgotten", "dim")
        elif line == "/adapters":
            say("\n".join(self.llm.pool.candidates))
        elif line == "/auto":
            self.llm.pool.auto()
            say("The adapters are chosen for each message", "dim")
        elif line.startswith(("/pin ", "/teach ", "/unteach ")):
            self.about(*line.split(None, 1))
        elif line == "/why":
            if self.llm.last_route is None:
                say("Nothing was asked yet", "dim")
            else:
                self.why()
        else:
            say(f"There is no command {line.split()[0]}; /? lists them")

    def about(self, command: str, name: str) -> None:
        """A command about one adapter, by its name."""
        try:
            if command == "/pin":
                self.llm.pool.auto()
                self.llm.pool.pin(name)
                say(f"{name} answers until /auto; /teach {name} remembers your message", "dim")
            elif command == "/unteach":
                gone = self.llm.unteach(name, last=True)
                say(f"Forgotten: {gone} example of {name}", "dim")
            elif not self.last:
                say("Send the message first that is an example", "dim")
            else:
                self.llm.teach(name, [self.last])
                say(f"Remembered for {name}; /unteach {name} forgets it", "dim")
        except LogoError as error:
            print_error(error)

    def why(self) -> None:
        if self.llm.last_route is not None:
            console = err_console()
            console.print(report.explain_table(self.llm.last_route, console.width))

    def turn(self, line: str) -> None:
        """One message and its answer; a failure or Ctrl+C ends the answer, not the session."""
        self.last = line
        self.messages.append({"role": "user", "content": line})
        prompt: Prompt = line if self.raw else self.messages
        answer, stopped = Answer(), False
        try:
            for piece in stream(self.llm, prompt, self.sampling, answer):
                print(piece, end="", flush=True)
        except KeyboardInterrupt:
            stopped = True
        except LogoError as error:
            self.messages.pop()
            print_error(error)
            return
        finally:
            if answer.text:
                print(flush=True)
        if self.raw:
            self.messages = []
        elif answer.text:
            self.messages.append({"role": "assistant", "content": answer.text})
        else:  # nothing was said: two messages of the user in a row would upset some templates
            self.messages.pop()
        if self.messages:
            self.read_ahead()
        if stopped:
            say("stopped", "dim")
        elif self.llm.last_route is not None:
            if self.explain:
                self.why()
            say(report.blend_line(self.llm.last_route, err_console().width), "dim")


def is_terminal() -> bool:
    """Whether somebody sits at the other end of standard input."""
    return sys.stdin is not None and sys.stdin.isatty()  # None where it was closed
