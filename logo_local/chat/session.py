"""The state of a chat between turns, and its turns.

Lines come from a function, so this module does not depend on the input method.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from threading import Thread

from ..completions import Answer, Engine, Message, Prompt, Sampling, stream, system_messages
from ..console import report
from ..console.answers import AnswerStream
from ..console.terminal import aside, err_console, is_verbose, note, print_error
from ..errors import LogoError, PromptError
from ..routing import registry
from ..routing.route import Route
from . import commands
from .lines import read_message
from .settings import Settings

LEAVE = ("exit", "quit")  # accepted because other programs use them


class Session:
    """One chat with an engine; with `raw` each message is completed separately.

    `suggestions` are prompts shown in the opening; `background` returns a short status of
    background work, "" if there is none.

    `messages` alternate between user and assistant, `last` is the last message sent, `before` the
    route of the turn before the last; with `base_only` the next answers come from the base model
    alone.
    """

    def __init__(
        self,
        llm: Engine,
        sampling: Sampling,
        *,
        system: str | None = None,
        explain: bool = False,
        raw: bool = False,
        suggestions: Sequence[str] = (),
        background: Callable[[], str] = str,
    ) -> None:
        self.llm, self.suggestions = llm, suggestions
        self.background, self._was_busy = background, bool(background())
        self.settings = Settings(llm, sampling, system)
        self.explain = explain
        self.raw = raw
        self.messages: list[Message] = []
        self.last = ""
        self.before: Route | None = None
        self.over = self.base_only = False
        self._ahead: Thread | None = None  # reads ahead while the user is idle

    def run(self, read: Callable[[str], str]) -> None:
        """Answer what `read` returns until the end; Ctrl+C stops an answer, never the chat."""
        aside(opening(self.llm))
        if self.suggestions:
            aside("Some prompts to try:")
        for prompt in self.suggestions:
            aside(f"  {prompt}")
        aside("Send a message (/? for help)")
        if self.raw:
            note("Each line is completed by itself, without a chat template")
            if self.settings.system:
                note("warning: --system has no effect without a chat template", "yellow")
        while not self.over:
            if self._was_busy and not self.background():
                self._was_busy = False
                aside("The example prompts are ready")
            try:
                self.take(read_message(read, "base " if self.base_only else ""))
            except EOFError:
                return
            except KeyboardInterrupt:
                note("Ctrl+D or /bye leaves")

    def take(self, text: str) -> None:
        """Handle one message or command."""
        self.stop_reading()
        if text.startswith("//"):
            self.turn(text[1:])
        elif text.casefold() in LEAVE:
            self.over = True
        elif text.startswith("/"):
            try:
                commands.run(self, text)
            except LogoError as error:
                print_error(error)
        elif text:
            self.turn(text)

    def complete(self, text: str) -> tuple[int, list[str]]:
        """Completions for the end of `text`; see `lines.Complete`."""
        return commands.complete(text, self.llm.pool.names)

    def prompt(self, messages: Sequence[Message]) -> Prompt:
        """The engine's prompt for a conversation that ends with a user message."""
        if self.raw:
            return messages[-1]["content"]
        return [*system_messages(self.settings.system), *messages]

    def count(self, messages: Sequence[Message]) -> int:
        """The tokens of a conversation; the context size if it does not fit."""
        try:
            return len(self.llm.tokens_of(self.prompt(messages)))
        except PromptError:
            return self.llm.n_ctx()

    def turn(self, text: str) -> None:
        """One message and its answer; a failure or Ctrl+C ends the answer, not the session."""
        self.last = text
        route, answer, stopped = self.llm.last_route, Answer(), False
        shown = AnswerStream()
        try:
            self._make_room({"role": "user", "content": text})
            asked = [*self.messages, {"role": "user", "content": text}]
            with self.llm.base_only() if self.base_only else nullcontext():
                for piece in stream(self.llm, self.prompt(asked), self.settings.sampling, answer):
                    shown.write(piece)
        except KeyboardInterrupt:
            stopped = True
        except LogoError as error:
            shown.end()
            print_error(error)
            return
        shown.end()
        # Skip turns without an answer: some templates reject two user messages in a row.
        if answer.text and not self.raw:
            self.messages = [*asked, {"role": "assistant", "content": answer.text}]
        if self.messages and not self.raw:
            self._read_ahead()
        if stopped:
            note("stopped")
            return
        if not answer.text.strip():
            note("The answer is empty")
        if self.llm.last_route is not None:
            self.before = route
            self._say_how_it_ended(answer)
            if self.explain:
                self.why()
            if not (self.explain and self.llm.last_route.is_base):  # otherwise already shown
                aside(report.blend_line(self.llm.last_route, err_console().width))
            if is_verbose():
                note(report.answer_line(self.llm.timings_ms, self.llm.usage))

    def _make_room(self, message: Message) -> None:
        """Drop the oldest turns if the conversation leaves too little space for an answer."""
        if self.raw or not self.messages:
            return
        n_ctx, longest = self.llm.n_ctx(), self.settings.sampling.max_tokens
        kept = that_fits([*self.messages, message], self.count, n_ctx, longest)[:-1]
        dropped = len(self.messages) - len(kept)
        if dropped:
            self.messages = kept
            n = "2 messages are" if dropped == 2 else f"{dropped} messages are"
            note(f"The oldest {n} dropped: the context of {n_ctx} tokens is full")

    def _say_how_it_ended(self, answer: Answer) -> None:
        if answer.finish != "length":
            return
        if sum(self.llm.usage.values()) >= self.llm.n_ctx():
            note("The answer ends here: the context is full (/clear, or --ctx-size)")
        else:
            most = self.settings.sampling.max_tokens
            note(f"The answer ends here: it has {most} tokens (/set max-tokens)")

    def why(self) -> None:
        """Show the scores of the last route."""
        if self.llm.last_route is not None:
            console = err_console()
            bars = console.is_terminal
            console.print(report.explain_table(self.llm.last_route, console.width, bars=bars))

    def _read_ahead(self) -> None:
        """Read the conversation in the background while the user reads the answer.

        Makes the next route faster. Only with prefill="base"; otherwise the engine does nothing.
        """
        prompt = self.prompt(self.messages)

        def read() -> None:
            with suppress(LogoError):  # the next message will raise the same error
                self.llm.read_ahead(prompt)

        self._ahead = Thread(target=read, daemon=True)
        self._ahead.start()

    def stop_reading(self) -> None:
        """Wait until the engine is free."""
        while self._ahead is not None and self._ahead.is_alive():
            with suppress(KeyboardInterrupt):  # nothing may be freed while it is in use
                self._ahead.join()
        self._ahead = None


def opening(llm: Engine) -> str:
    """One line about the model, its adapters, and how many of them have example prompts."""
    n, missing = len(llm.pool.names), len(llm.without_profile())
    adapters = "no adapters" if n == 0 else "1 adapter" if n == 1 else f"{n} adapters"
    looked_for = llm.routing.self_profile and llm.routing.resolved() == registry.DEFAULT
    if not n or not looked_for:
        return f"{llm.base.path.stem} with {adapters}"
    known = f" ({n - missing if missing else 'all'} with example prompts)"
    return f"{llm.base.path.stem} with {adapters}{known}"


def that_fits(
    turns: list[Message], count: Callable[[Sequence[Message]], int], n_ctx: int, longest: int
) -> list[Message]:
    """`turns`, without the oldest ones if they leave too little of `n_ctx` for an answer.

    `turns` alternate between user and assistant, the last one is the message to answer; `count`
    returns their tokens, at most `n_ctx`. Too little is less than `longest` tokens and less than
    a quarter of the context. A cut leaves half of the context free if possible, because everything
    must be read again. The last message is always kept, even if it is too long.
    """
    limit = n_ctx - min(longest, n_ctx // 4)
    if count(turns) <= limit:
        return turns
    for most in (n_ctx // 2, limit, n_ctx - 1):
        starts = range(2, len(turns), 2)  # a conversation begins with the user
        first = bisect_left(starts, True, key=_fits(turns, count, most))
        if first < len(starts):
            return turns[starts[first] :]
    return turns


def _fits(
    turns: list[Message], count: Callable[[Sequence[Message]], int], most: int
) -> Callable[[int], bool]:
    return lambda start: count(turns[start:]) <= most
