"""The chat as a user meets it: the small model behind a real pseudo-terminal."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import small_model

pexpect = pytest.importorskip("pexpect")

SMALL = small_model.ARGS
ROOT = Path(__file__).resolve().parent.parent
PROMPT = ">>>"
QUESTION = "What animal does Ruvo look after?"
BLEND = r"recall-pet \d\.\d\d|base alone"
CTRL_R = "\x12"
CTRL_C, CTRL_D, UP, TAB, ENTER, ALT_ENTER = "\x03", "\x04", "\x1b[A", "\t", "\r", "\x1b\r"

# Newer Pythons warn of every fork beside threads; the child only replaces itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

# The engine itself, but that its first answer stops for ten minutes after one token.
SLOW = f"""
SMALL = {SMALL!r}
import sys, time
from logo_local.commands.cli import cli
from logo_local.engine import LoGo

class Slow(LoGo):
    waits = True

    def generate(self, *args, **kwargs):
        for token in super().generate(*args, **kwargs):
            yield token
            if Slow.waits:
                Slow.waits = False
                print("waiting", file=sys.stderr, flush=True)
                time.sleep(600)

cli(["run", *SMALL], obj=lambda model, adapters, **settings: Slow(model, adapters, **settings))
"""


class Terminal:
    """A chat and its screen; `seen` is everything that was written to it."""

    def __init__(self, command, folder, columns, env):
        self.child = pexpect.spawn(
            command[0],
            [str(part) for part in command[1:]],
            cwd=str(folder),
            dimensions=(24, columns),
            encoding="utf-8",
            timeout=120,  # a machine may be busy; nothing here depends on speed
            env={
                **{key: value for key, value in os.environ.items() if key != "NO_COLOR"},
                **{"PYTHONPATH": str(ROOT), "LOGO_LOCAL_HOME": str(folder), "TERM": "xterm"},
                # Two threads of llama.cpp wait for each other actively: on a busy machine, minutes.
                "LOGO_LOCAL_THREADS": "1",
                **env,
            },
        )
        self.child.delaybeforesend = None
        self.seen = ""

    def expect(self, pattern):
        self.child.expect(pattern)
        text = self.child.before + self.child.after
        self.seen += text
        return text

    def prompt(self):
        return self.expect(PROMPT)

    def say(self, text, pattern=BLEND):
        """Type a line, and wait for `pattern` and the next prompt; what was written meanwhile."""
        self.child.send(text + ENTER)
        return self.expect(pattern) + self.prompt()

    def ends(self, keys):
        """Type `keys`; the exit code."""
        self.child.send(keys)
        self.child.expect(pexpect.EOF)
        self.seen += self.child.before
        self.child.close()
        assert "Traceback" not in self.seen
        return self.child.exitstatus


@pytest.fixture
def terminal(tmp_path):
    """terminal(*command, columns=80, **env) -> a `Terminal`, by default with the small model."""
    open_ones = []

    def terminal(*command, columns=80, **env):
        command = command or (sys.executable, "-m", "logo_local", "run", *SMALL)
        open_ones.append(Terminal(command, tmp_path, columns, env))
        return open_ones[-1]

    yield terminal
    for one in open_ones:
        one.child.close(force=True)


def messages(path):
    return [m["content"] for m in json.loads(path.read_text(encoding="utf-8"))["messages"]]


def test_a_conversation(terminal):
    chat = terminal()
    assert "Send a message (/? for help)" in chat.prompt()
    chat.say(QUESTION)
    assert "recall-pet" in chat.say("/why", "one-pass")
    assert "did you mean /clear" in chat.say("/cler", "error: ")
    assert chat.ends(CTRL_D) == 0


def test_bye_leaves_too(terminal):
    chat = terminal()
    chat.prompt()
    assert chat.ends("/bye" + ENTER) == 0


def test_arrow_up_brings_back_what_was_typed_in_an_earlier_chat(terminal, tmp_path):
    chat = terminal()
    chat.prompt()
    chat.say(QUESTION)
    chat.ends(CTRL_D)
    chat = terminal()
    chat.prompt()
    chat.say(UP)
    chat.say("/save chat.json", "2 messages were saved to")
    assert chat.ends(CTRL_D) == 0
    assert messages(tmp_path / "chat.json")[0] == QUESTION


def test_what_was_typed_is_searched(terminal, tmp_path):
    chat = terminal()
    chat.prompt()
    chat.say(QUESTION)
    chat.say("/clear", "cleared")
    chat.child.send(f"{CTRL_R}Ruvo")
    chat.expect("I-search")
    chat.child.send(CTRL_C)  # ends the search, not the chat
    chat.child.send(f"{CTRL_R}Ruvo{ENTER}")
    chat.say("")
    chat.say("/save chat.json", "2 messages were saved to")
    assert chat.ends(CTRL_D) == 0
    assert messages(tmp_path / "chat.json")[0] == QUESTION


def test_tab_completes_commands_and_adapters(terminal):
    chat = terminal()
    chat.prompt()
    chat.say(f"/pi{TAB}sort-w{TAB}", "sort-words is pinned until /auto")
    chat.say(f"/set top-k{TAB}1", "top-k is now 1")
    chat.child.send(f"/pin recall{TAB}{TAB}")
    chat.expect("recall-pet")
    chat.expect("recall-town")
    assert chat.ends(CTRL_C + CTRL_D) == 0


def test_several_lines_are_one_message(terminal, tmp_path):
    chat = terminal()
    chat.prompt()
    chat.child.send(f'"""{ENTER}What animal{ENTER}  does Ruvo{ENTER}look after?"""')
    chat.say("")
    chat.say(f"What animal{ALT_ENTER}does Ruvo look after?")
    chat.say("/save chat.json", "4 messages were saved to")
    assert chat.ends(CTRL_D) == 0
    asked = messages(tmp_path / "chat.json")[::2]
    assert asked == [
        "What animal\n  does Ruvo\nlook after?",
        "What animal\ndoes Ruvo look after?",
    ]


def test_ctrl_c_clears_the_line_and_says_how_to_leave(terminal, tmp_path):
    chat = terminal()
    chat.prompt()
    chat.say(f"not this{CTRL_C}{QUESTION}")
    chat.child.send(CTRL_C)
    chat.expect("Ctrl\\+D or /bye leaves")
    chat.prompt()
    chat.say("/save chat.json", "2 messages were saved to")
    assert chat.ends(CTRL_D) == 0
    assert messages(tmp_path / "chat.json")[0] == QUESTION


def test_ctrl_c_stops_an_answer_and_keeps_the_session(terminal):
    chat = terminal(sys.executable, "-c", SLOW)
    chat.prompt()
    chat.child.send(QUESTION + ENTER)
    chat.expect("waiting")
    chat.child.sendintr()
    chat.expect("stopped")
    chat.prompt()
    chat.say(QUESTION)
    assert chat.ends(CTRL_D) == 0


def test_twenty_columns(terminal):
    chat = terminal(columns=20)
    chat.prompt()
    chat.say(QUESTION)
    for command, pattern in (
        ("/?", "Ctrl\\+C"),
        ("/why", "one-pass"),
        ("/adapters", "weight"),
        ("/set", "repeat-penalty"),
        ("/show", "context"),
    ):
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", chat.say(command, pattern))
        drawn = [line for line in text.splitlines() if "  " in line.strip()]
        assert all(len(line) <= 20 for line in drawn), drawn  # no table is torn by the edge
    assert chat.ends(CTRL_D) == 0


@pytest.mark.parametrize(
    ("env", "unwanted"),
    [({"TERM": "dumb"}, r"\x1b"), ({"NO_COLOR": "1"}, r"\x1b\[(\d+;)*[349]\d[;m]")],
)
def test_terminals_without_colours(terminal, env, unwanted):
    chat = terminal(**env)
    chat.prompt()
    chat.say(QUESTION)
    chat.say("/why", "one-pass")
    chat.say("/nothing", "error: ")
    assert chat.ends(CTRL_D) == 0
    assert not re.search(unwanted, chat.seen)


def test_answers_can_go_to_a_file(terminal, tmp_path):
    command = f"exec '{sys.executable}' -m logo_local run {' '.join(SMALL)} > answers.txt"
    chat = terminal("/bin/sh", "-c", command)
    chat.prompt()
    chat.say(QUESTION)
    chat.say("/why", "one-pass")
    assert chat.ends(CTRL_D) == 0
    (answer,) = (tmp_path / "answers.txt").read_text(encoding="utf-8").splitlines()
    assert re.fullmatch(r"[ a-z]+", answer)


def test_an_unchanged_route_reads_only_what_is_new(monkeypatch):
    from llama_cpp import Llama

    from logo_local import LoGo
    from logo_local.chat import chat
    from logo_local.completions import Sampling

    evaluated, prompts = [], []
    eval_ = Llama.eval
    monkeypatch.setattr(
        Llama, "eval", lambda self, new: (evaluated.append(len(new)), eval_(self, new))[1]
    )
    with LoGo(small_model.MODEL, small_model.ADAPTERS) as llm:
        lines = iter(["/pin recall-pet", QUESTION, "And Rumek?"])

        def read(_prompt):
            line = next(lines, None)
            if line == "And Rumek?":
                prompts.append(llm.usage["prompt_tokens"])
                evaluated.clear()
            if line is None:
                raise EOFError
            return line

        chat(llm, Sampling(max_tokens=8), read=read)
        prompts.append(llm.usage["prompt_tokens"])
        assert llm.last_route.names == ("recall-pet",)
    first, second = prompts
    # The first call of eval is the prompt's; those after it are the answer's, a token each.
    assert evaluated[0] <= second - first < second


def test_what_a_model_says_cannot_steer_the_terminal(terminal, tmp_path):
    code = (
        "from logo_local.commands.cli import cli; from logo_local.fake import FakeLoGo\n"
        r"llm = FakeLoGo({'a': 1.0}, ['x\x1b]0;owned\x07y\x9b31m'])" + "\n"
        "cli(['run', 'm', '--adapters', 'x', *ARGS], obj=llm.opened)"
    )
    chat = terminal(sys.executable, "-c", code.replace("ARGS", "[]"))
    chat.prompt()
    chat.say("hello", "a 1.00")
    assert chat.ends(CTRL_D) == 0
    once = terminal(sys.executable, "-c", code.replace("ARGS", "['hello']"))
    assert once.ends("") == 0
    for one in (chat, once):
        assert "x␛]0;owned␇y\\x9b31m" in one.seen
        assert not re.search("\x1b]0;owned|\x9b", one.seen)
