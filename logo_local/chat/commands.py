"""The slash commands of a chat: one table, which also gives the help and completion."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..completions import Engine, Message
from ..console import report
from ..console.terminal import err_console, note, say
from ..errors import LogoError
from ..routing.advice import one_wording
from ..routing.route import Route
from . import transcript
from .settings import DEFAULT, OPTIONS, Settings, shown
from .transcript import Transcript


class Session(Protocol):
    """The part of a `session.Session` that commands use."""

    llm: Engine
    settings: Settings
    messages: list[Message]
    last: str
    before: Route | None
    raw: bool
    over: bool
    base_only: bool
    background: Callable[[], str]

    def why(self) -> None: ...  # noqa: D102
    def turn(self, text: str) -> None: ...  # noqa: D102
    def count(self, messages: Sequence[Message]) -> int: ...  # noqa: D102


@dataclass(frozen=True)
class Command:
    """One command; `argument` is NAME, FILE or OPTION, in brackets if it is optional."""

    name: str
    help: str
    do: Callable[[Session, str], None]
    argument: str = ""
    others: tuple[str, ...] = ()  # further names, which the help does not list

    @property
    def usage(self) -> str:
        """How to type it: "/pin NAME"."""
        return f"{self.name} {self.argument}".rstrip()


def run(session: Session, line: str) -> None:
    """Run the command in `line`, which begins with a slash; LogoError if it fails."""
    name, _, argument = line.partition(" ")
    argument = argument.strip()
    command = _BY_NAME.get(name)
    if command is None:
        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise LogoError(
            f"there is no command {name}",
            hint=f"{guess}/? lists them; two slashes begin a message: /{name}",
        )
    if argument and not command.argument:
        raise LogoError(f"{command.name} takes nothing after it", hint="/? lists the commands")
    if not argument and command.argument and not command.argument.startswith("["):
        raise LogoError(f"{command.name} needs more", hint=command.usage)
    command.do(session, argument)


def complete(text: str, adapters: Sequence[str]) -> tuple[int, list[str]]:
    """Completions for the end of `text`, a partly typed command; see `lines.Complete`.

    Lists folders to complete file names.
    """
    if not text.startswith("/") or "\n" in text:
        return 0, []
    name, space, rest = text.partition(" ")
    if not space:
        found = [c for c in COMMANDS if c.name.startswith(name)]
        return len(name), [c.name + (" " if c.argument else "") for c in found]
    command = _BY_NAME.get(name)
    argument = "" if command is None else command.argument
    if argument == "FILE":
        return _files(rest)
    offered: Sequence[str] = ()
    if argument == "NAME":
        offered = adapters
    elif argument == "[OPTION [VALUE]]":
        option, space, value = rest.partition(" ")
        if space:
            rest = value
            offered = (*OPTIONS[option].choices, DEFAULT) if option in OPTIONS else ()
        else:
            offered = [f"{option} " for option in OPTIONS]
    return len(rest), [one for one in offered if one.startswith(rest)]


def _files(start: str) -> tuple[int, list[str]]:
    folder, _, name = start.rpartition("/")
    where = Path(os.path.expanduser(f"{folder}/" if "/" in start else "."))
    try:
        entries = sorted(os.scandir(where), key=lambda entry: entry.name)
    except OSError:
        return 0, []
    return len(name), [
        entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(name) and (name or not entry.name.startswith("."))
    ]


# The functions of the commands


def _help(_session: Session, _argument: str) -> None:
    rows = [(command.usage, command.help) for command in COMMANDS]
    say(report.columns(rows, err_console().width))
    say("")
    say(report.columns(_KEYS, err_console().width))


_KEYS = [
    ("Alt+Enter", "start a new line in the message; also Esc, then Enter"),
    ('"""', "start and end a message of several lines"),
    ("Up, Ctrl+R", "show and search earlier input"),
    ("Tab", "complete commands, adapters, options and files"),
    ("Ctrl+C", "stop the answer, or clear the line"),
    ("//", "start a message with a single slash"),
]


def _why(session: Session, _argument: str) -> None:
    if session.llm.last_route is None:
        note("There is no answer yet")
        return
    session.why()
    for line in report.route_changes(session.before, session.llm.last_route):
        note(line)


def _adapters(session: Session, _argument: str) -> None:
    console = err_console()
    table = report.adapters_table(session.llm.pool, session.llm.last_route, console.width)
    console.print(table)


def _pin(session: Session, name: str) -> None:
    pool = session.llm.pool
    pool.check_name(name)
    off = [other for other in pool.excluded if other != name]
    pool.auto()
    for other in off:
        pool.exclude(other)
    pool.pin(name)
    session.base_only = False
    note(f"{name} is pinned until /auto; /teach {name} adds your message to its examples")


def _off(session: Session, name: str) -> None:
    pool = session.llm.pool
    pool.exclude(name)
    left = "" if pool.candidates else ", and so is every other: the base answers alone"
    note(f"{name} is off until /auto{left}")


def _base(session: Session, _argument: str) -> None:
    if session.llm.pool.folder is None:
        note("The base model always answers: no adapters are loaded")
        return
    session.base_only = not session.base_only
    if session.base_only:
        note("The base model answers until /base or /auto")
    else:
        note("Adapters are selected for each message again")


def _auto(session: Session, _argument: str) -> None:
    session.llm.pool.auto()
    session.base_only = False
    note("Adapters are selected for each message again")


def _set(session: Session, argument: str) -> None:
    name, _, value = argument.partition(" ")
    values = session.settings.values()
    if not name:
        rows = [(option, shown(values[option]), about.help) for option, about in OPTIONS.items()]
        say(report.columns(rows, err_console().width))
        note(f"/set OPTION VALUE changes a setting, /set OPTION {DEFAULT} resets it")
    elif not value.strip() and name in OPTIONS:
        say(session.settings.system or "not set" if name == "system" else shown(values[name]))
    else:
        changed = session.settings.change({name: value.strip()})
        note(f"{name} is now {shown(changed[name])}")
        if name == "system" and session.raw:
            note("It has no effect without a chat template")


def _show(session: Session, _argument: str) -> None:
    llm = session.llm
    pool, base, width = llm.pool, llm.base, err_console().width
    n_ctx = llm.n_ctx()
    used = session.count(session.messages) if session.messages and not session.raw else 0
    rows = [
        ("model", f"{base.name or base.path.name}, {base.architecture}: {base.path}"),
        ("adapters", f"{len(pool.names)} in {pool.folder}" if pool.folder else "none are loaded"),
        ("answers by", "the base model alone, until /base" if session.base_only else ""),
        ("background", session.background()),
        ("pinned", ", ".join(pool.pinned)),
        ("off", ", ".join(pool.excluded)),
        ("messages", str(len(session.messages))),
        ("context", f"{used} of {n_ctx} tokens used"),
    ]
    if session.llm.last_route is not None:
        rows.append(("last answer", report.answer_line(llm.timings_ms, llm.usage)))
    values = session.settings.values()
    rows += [(option, shown(values[option])) for option in OPTIONS]
    say(report.columns([row for row in rows if row[1]], width))


def _retry(session: Session, _argument: str) -> None:
    text, messages = session.last, session.messages
    if not text:
        note("There is no answer yet")
        return
    before = ""
    if messages[-2:-1] == [{"role": "user", "content": text}]:
        before = messages[-1]["content"]
        session.messages = messages[:-2]
    session.turn(text)
    sampling = session.settings.sampling
    same = session.messages[-1:] == [{"role": "assistant", "content": before}]
    if same and (sampling.temp == 0 or sampling.seed is not None):
        note("The answer is the same: it is reproducible at temp 0, or with a seed")


def _clear(session: Session, _argument: str) -> None:
    session.messages, session.last = [], ""
    note("The conversation is cleared")


def _save(session: Session, argument: str) -> None:
    path, pool = Path(argument).expanduser(), session.llm.pool
    values = session.settings.values()
    chat = Transcript(
        session.llm.base.name,
        tuple(session.messages),
        {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()},
        pool.pinned,
        pool.excluded,
    )
    transcript.save(chat, path)
    note(f"{len(chat.messages)} messages were saved to {path}; /load reads them")


def _load(session: Session, argument: str) -> None:
    path, pool = Path(argument).expanduser(), session.llm.pool
    chat = transcript.load(path)
    session.settings.change(chat.settings)
    session.messages = list(chat.messages)
    session.last = chat.messages[-2]["content"] if chat.messages else ""
    pool.auto()
    for names, put in ((chat.pinned, pool.pin), (chat.off, pool.exclude)):
        for name in names:
            if name in pool.names:
                put(name)
            else:
                note(f"warning: {name} is not one of the adapters here", "yellow")
    if chat.model != session.llm.base.name:
        note(f"warning: the answers are from {chat.model or 'another model'}", "yellow")
    note(f"{len(chat.messages)} messages were loaded from {path}")


def _teach(session: Session, name: str) -> None:
    session.llm.pool.check_name(name)
    if not session.last:
        note("First send the message that you want to add")
        return
    session.llm.teach(name, [session.last])
    note(f"Added to the examples of {name}; /unteach {name} removes it")
    if alike := one_wording(session.llm.examples(name)):
        note(f"All its examples {alike}: examples in other words help more than further ones")


def _unteach(session: Session, name: str) -> None:
    gone = session.llm.unteach(name, last=True)
    note(f"Removed the last example of {name}" if gone else f"{name} has no added examples")


def _bye(session: Session, _argument: str) -> None:
    session.over = True


COMMANDS = (
    Command("/why", "show the last route: scores above 0, and what changed", _why),
    Command("/adapters", "list the adapters: weight in the last answer, pinned or off", _adapters),
    Command("/pin", "use only this adapter, until /auto", _pin, "NAME"),
    Command("/off", "exclude this adapter, until /auto", _off, "NAME"),
    Command("/base", "answer with the base model alone; /base again: select adapters", _base),
    Command("/auto", "select from all adapters again", _auto),
    Command("/teach", "add your last message to the examples of NAME", _teach, "NAME"),
    Command("/unteach", "remove the last example that you added to NAME", _unteach, "NAME"),
    Command("/set", "list the settings, or change one", _set, "[OPTION [VALUE]]"),
    Command("/show", "show model, context, settings, and speed of the last answer", _show),
    Command("/retry", "drop the last answer and generate it again", _retry, others=("/regen",)),
    Command("/clear", "clear the conversation", _clear),
    Command("/save", "save the conversation and the settings to a file", _save, "FILE"),
    Command("/load", "continue a saved conversation", _load, "FILE"),
    Command("/bye", "leave the chat, like exit, quit and Ctrl+D", _bye, others=("/exit", "/quit")),
    Command("/?", "this help", _help, others=("/help",)),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.others)}
