"""The examples as somebody would use them: with keys, on a screen, and as programs."""

import gc
import os
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_model
from test_jsonl_command import PROGRAM

from logo_local.fake import FakeLoGo

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PATIENCE = 60  # seconds, for what never takes so long
WORKER = (str(small_model.MODEL), str(small_model.ADAPTERS))
QUESTION, ANSWER = "Tell me the town where Kalin lives.", "Dunmere"


@pytest.fixture(autouse=True)
def _examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    gc.collect()  # Tcl ends the process where its interpreter goes in another thread than it came


# The window


@pytest.fixture(scope="module")
def display():
    """A screen that nobody sees."""
    pytest.importorskip("tkinter")
    for program in ("Xvfb", "xdotool"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1000x700x24", "-nolisten", "tcp"]
    nothing, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=nothing) as server:
        yield f":{server.stdout.readline().decode().strip()}"
        server.terminate()


class Screen:
    """The window, and somebody before it."""

    def __init__(self, window):
        self.window = window

    def until(self, happened):
        end = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < end
            self.window.update()
            time.sleep(0.005)

    def press(self, *keys):
        for key in keys:
            self.xdotool("key", key)

    def type(self, text):
        self.xdotool("type", "--delay", "1", text)
        self.until(lambda: self.window.entry.get() == text)

    def xdotool(self, *arguments):
        subprocess.run(["xdotool", *arguments], check=True, timeout=PATIENCE)
        self.window.update()

    @property
    def said(self):
        return self.window.said.get("1.0", "end")

    @property
    def names(self):
        """The texts at the side, all the way down."""
        found, todo = [], [self.window.side]
        while todo:
            widget = todo.pop(0)
            todo = [*widget.winfo_children(), *todo]
            if widget.winfo_class() == "TLabel":
                found.append(widget.cget("text"))
        return found


@pytest.fixture
def screen(display, monkeypatch):
    """screen(engine=None) -> the window, its engine open: a fake one, or the small model."""
    monkeypatch.setenv("DISPLAY", display)
    import tk_chat

    made = []

    def open_window(engine=None):
        if engine is not None:
            monkeypatch.setattr(tk_chat, "LoGo", engine.opened)
        worker = tk_chat.Worker(*WORKER)
        window = tk_chat.Window(worker)
        made.append(window)
        worker.start()
        window.focus_force()  # there is no window manager
        window.entry.focus_force()
        screen = Screen(window)
        screen.until(lambda: not window.busy)
        return screen

    yield open_window
    for window in made:
        if window.worker.is_alive():
            window.leave()


def test_the_model_answers_what_is_typed(screen):
    screen = screen()
    screen.type(QUESTION)
    screen.press("Return")
    screen.until(lambda: not screen.window.busy)
    assert f"Model\n{ANSWER}\n" in screen.said
    assert "recall-town" in screen.names


def test_a_conversation_by_keys_alone(screen):
    llm = FakeLoGo({"sort-words": 3.0, "reverse": 1.0}, [["one ", "two"], "three"])
    screen = screen(llm)
    window = screen.window
    screen.type("first")
    screen.press("Return")
    screen.until(lambda: not window.busy)
    assert screen.said.split("\n")[:4] == ["You", "first", "Model", "one two"]
    assert screen.names == ["Answered by", "sort-words", "0.75", "reverse", "0.25"]
    screen.type("second")
    screen.press("Tab", "Return")  # the button
    screen.until(lambda: not window.busy)
    assert [m["content"] for m in llm.history[1].messages] == ["first", "one two", "second"]
    screen.press("ctrl+l")
    screen.until(lambda: not screen.said.strip())
    assert screen.names == ["Answered by"]
    screen.press("ctrl+q")
    assert not window.worker.is_alive()
    assert llm.closed


class Endless(FakeLoGo):
    """Answers for ever."""

    def _counted(self, prompt, pieces):
        while not self.should_stop():
            time.sleep(0.001)
            yield "word "
        self._stopped = True


@pytest.mark.parametrize("way", ["Escape", "button", "close"])
def test_an_answer_is_stopped(screen, way):
    llm = Endless({"a": 1.0})
    screen = screen(llm)
    window = screen.window
    screen.type("go")
    screen.press("Return")
    screen.until(lambda: "word word" in screen.said)
    assert window.busy
    if way == "close":
        window.leave()
        assert not window.worker.is_alive()
        assert llm.closed
        return
    if way == "Escape":
        screen.press("Escape")
    else:
        window.stopper.invoke()
    screen.until(lambda: not window.busy)
    assert window.worker.is_alive()


def test_a_model_that_cannot_be_opened_is_said(display, monkeypatch, tmp_path):
    monkeypatch.setenv("DISPLAY", display)
    import tk_chat

    worker = tk_chat.Worker(str(tmp_path / "none.gguf"), str(tmp_path))
    window = tk_chat.Window(worker)
    worker.start()
    screen = Screen(window)
    screen.until(lambda: "no model file at" in screen.said)
    assert window.busy
    window.leave()


def test_the_window_says_how_it_is_started(capsys):
    tk_chat = pytest.importorskip("tk_chat", exc_type=ImportError)
    assert tk_chat.main(["model.gguf"]) == 2
    assert capsys.readouterr().err == "usage: tk_chat.py [MODEL ADAPTERS]\n"


def test_the_window_without_a_display_is_one_line(monkeypatch, capsys):
    tk_chat = pytest.importorskip("tk_chat", exc_type=ImportError)

    def no_display(_worker):
        raise tk_chat.tk.TclError("no display name and no $DISPLAY environment variable")

    monkeypatch.setattr(tk_chat, "Window", no_display)
    assert tk_chat.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# The clients


def test_the_python_client_without_the_program_is_one_line(monkeypatch, tmp_path):
    import jsonl_client

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        jsonl_client.main("hello")
    assert caught.value.code == "jsonl_client.py: there is no logo-local in the PATH"


@pytest.fixture
def fake_program(tmp_path, monkeypatch):
    """A logo-local in the PATH whose engine answers "for ever" for ever."""
    program = tmp_path / "bin" / "logo-local"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def program(monkeypatch):
    """The program itself in the PATH."""
    folder = Path(sys.executable).parent
    if not (folder / "logo-local").exists():
        pytest.skip("logo-local is not installed beside this Python")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.fixture
def node():
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    return found


def test_the_python_client_streams_and_cancels(fake_program):
    from jsonl_client import Client

    with Client("m.gguf", "pool") as client:
        assert client.ready["adapters"] == ["a"]
        asked = client.ask("for ever", max_tokens=3)
        assert [next(asked)["event"] for _ in range(3)] == ["route", "token", "token"]
        asked.close()
        events = list(client.ask("short"))
        assert [e["event"] for e in events] == ["route", *3 * ["token"], "done"]
    assert client._process.returncode == 0


NODE = """
import { Client } from %r;
const client = new Client("m.gguf", "pool");
const seen = [(await client.ready).adapters.join()];
for await (const event of client.ask("for ever")) {
  seen.push(event.event);
  if (seen.length > 3) break;
}
for await (const event of client.ask("short")) seen.push(event.event);
client.process.on("exit", (code) => console.log(seen.join(" "), code));
client.close();
"""


def test_the_node_client_streams_and_cancels(fake_program, node):
    code = NODE % (EXAMPLES / "jsonl_client.mjs").as_uri()
    done = subprocess.run(
        [node, "--input-type=module", "-e", code],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout == "a route token token route token token token done 0\n", done.stderr


@pytest.mark.parametrize("language", ["python", "node"])
def test_the_clients_ask_the_program(program, language, request):
    if language == "python":
        command = [sys.executable, EXAMPLES / "jsonl_client.py"]
    else:
        command = [request.getfixturevalue("node"), EXAMPLES / "jsonl_client.mjs"]
    done = subprocess.run(
        [*command, QUESTION, *WORKER], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert done.stdout.strip() == ANSWER
    assert "recall-town " in done.stderr
