"""A small chat window: the engine in a thread of its own, the window in tkinter's.

    python examples/tk_chat.py [MODEL ADAPTERS]

Without arguments it opens the bundled model. Return sends, Esc stops an answer, Ctrl+L begins a new
conversation, Ctrl+Q leaves. Take `Worker` for an app of your own: it knows nothing of windows.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import tkinter as tk
from tkinter import font, ttk
from typing import Any

from logo_local import LoGo, LogoError, Route


class Worker(threading.Thread):
    """Owns the engine: opens it, asks it and closes it, all in this one thread.

    What happens comes out of `events`, in order, as a name and what belongs to it: ("progress",
    stage, done, total) and ("ready", number of adapters) while it opens, or ("failed", why);
    then for each question ("route", Route), ("piece", text) many times, and ("end", problem or "").
    """

    def __init__(self, model: str, adapters: str | None) -> None:
        super().__init__(name="engine")
        self.events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._model, self._adapters = model, adapters
        self._questions: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stopped, self._closing = threading.Event(), threading.Event()
        self._messages: list[dict[str, str]] = []

    def ask(self, text: str) -> None:
        """Answer `text` as the next message of the conversation. Not while an answer runs."""
        self._stopped.clear()
        self._questions.put(text)

    def stop(self) -> None:
        """End the answer that runs after the token at hand; what was said stays said."""
        self._stopped.set()

    def forget(self) -> None:
        """Begin a new conversation. Not while an answer runs."""
        self._messages = []

    def close(self) -> None:
        """End the thread after the token at hand; `join` waits for that."""
        self._closing.set()
        self._stopped.set()
        self._questions.put(None)

    def run(self) -> None:
        """What the thread does: open, answer until `close`, free the engine."""
        try:
            with LoGo(self._model, self._adapters, progress=self._progress) as llm:
                llm.on_route = lambda route: self.events.put(("route", route))
                self.events.put(("ready", len(llm.pool.names)))
                while (text := self._questions.get()) is not None and not self._closing.is_set():
                    self.events.put(("end", self._answer(llm, text)))
        except Exception as error:  # whatever it is, the window must not wait for ever
            self.events.put(("failed", f"{error}\n{getattr(error, 'hint', '')}"))

    def _progress(self, stage: str, done: int, total: int) -> None:
        self.events.put(("progress", stage, done, total))

    def _answer(self, llm: LoGo, text: str) -> str:
        messages, answer = [*self._messages, {"role": "user", "content": text}], ""
        try:
            stream = llm.create_chat_completion(
                messages, stream=True, max_tokens=256, temperature=0
            )
            for chunk in stream:
                piece = chunk["choices"][0]["delta"].get("content") or ""
                piece = piece if answer else piece.lstrip()
                answer += piece
                self.events.put(("piece", piece))
                if self._stopped.is_set():
                    break
            stream.close()
        except LogoError as error:
            return f"{error}\n{error.hint}"
        if answer:
            self._messages = [*messages, {"role": "assistant", "content": answer}]
        return ""


INK, PALE, PAPER, BACK, BLUE = "#1f2430", "#6b7280", "#ffffff", "#f3f4f6", "#2f6fde"
RED = "#b42318"
LOOK_EVERY = 30  # milliseconds


class Window(tk.Tk):
    """The conversation, the adapters behind the last answer, and a line to type in."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker
        self.busy = True  # until the engine is open
        self.title("logo-local")
        self.geometry("860x560")
        self.minsize(560, 360)
        self.configure(background=BACK)
        self._style()
        self._build()
        self.bind("<Escape>", lambda _event: worker.stop())
        self.bind("<Control-l>", lambda _event: self.begin_anew())
        self.bind("<Control-q>", lambda _event: self.leave())
        self.protocol("WM_DELETE_WINDOW", self.leave)
        self.after(LOOK_EVERY, self.look)

    def _style(self) -> None:
        family = next((f for f in ("Segoe UI", "DejaVu Sans") if f in font.families()), "")
        for name in ("TkDefaultFont", "TkTextFont"):
            font.nametofont(name).configure(family=family or "Helvetica", size=11)
        style = ttk.Style(self)
        style.theme_use("clam")
        style.configure(".", background=BACK, foreground=INK, bordercolor="#d5d9e0")
        style.configure("TButton", padding=(14, 7), relief="flat", background="#e3e7ee")
        style.configure("Send.TButton", background=BLUE, foreground=PAPER)
        style.map("Send.TButton", background=[("disabled", "#b9c9e8"), ("active", "#2459b3")])
        style.configure("TEntry", padding=8, fieldbackground=PAPER)
        style.configure("Pale.TLabel", foreground=PALE)
        style.configure("Head.TLabel", font=("TkDefaultFont", 11, "bold"))
        bar = {"background": BLUE, "troughcolor": "#e3e7ee", "borderwidth": 0, "thickness": 9}
        style.configure("Horizontal.TProgressbar", **bar)

    def _build(self) -> None:
        self.columnconfigure(0, weight=1)
        self.rowconfigure(0, weight=1)
        self.said = tk.Text(
            self, wrap="word", state="disabled", relief="flat", font="TkTextFont",
            background=PAPER, foreground=INK, padx=18, pady=14, spacing1=2, spacing3=6, takefocus=0,
        )  # fmt: skip
        for tag, colour, above in (("you", BLUE, 12), ("model", PALE, 4), ("problem", RED, 4)):
            bold = ("TkDefaultFont", 10, "normal" if tag == "problem" else "bold")
            self.said.tag_configure(tag, foreground=colour, font=bold, spacing1=above)
        self.said.grid(row=0, column=0, sticky="nsew", padx=(14, 0), pady=14)
        self.side = ttk.Frame(self, width=250, padding=(18, 16))
        self.side.grid(row=0, column=1, sticky="ns")
        self.side.grid_propagate(False)
        self.side.columnconfigure(0, weight=1)
        bottom = ttk.Frame(self, padding=(14, 0, 14, 6))
        bottom.grid(row=1, column=0, columnspan=2, sticky="ew")
        bottom.columnconfigure(0, weight=1)
        self.entry = ttk.Entry(bottom, font="TkTextFont")
        self.entry.grid(row=0, column=0, sticky="ew")
        self.entry.bind("<Return>", lambda _event: self.ask())
        self.entry.focus_set()
        self.sender = ttk.Button(bottom, text="Send", style="Send.TButton", command=self.ask)
        self.sender.grid(row=0, column=1, padx=(10, 0))
        self.stopper = ttk.Button(bottom, text="Stop", command=self.worker.stop)
        self.stopper.grid(row=0, column=2, padx=(8, 0))
        for button in (self.sender, self.stopper):  # Return presses what has the focus
            button.bind("<Return>", lambda event: event.widget.invoke())
        self.status = ttk.Label(self, style="Pale.TLabel", padding=(16, 0, 0, 10))
        self.status.grid(row=2, column=0, columnspan=2, sticky="w")
        self.on_route(None)
        self.set_busy(True, "Opening the model")

    # What the user does

    def ask(self) -> None:
        """Ask what was typed, unless an answer runs."""
        text = self.entry.get().strip()
        if self.busy or not text:
            return
        self.entry.delete(0, "end")
        self.say("You\n", "you")
        self.say(text + "\n")
        self.say("Model\n", "model")
        self.set_busy(True, "Answering; Esc stops")
        self.worker.ask(text)

    def begin_anew(self) -> None:
        """Begin a new conversation, unless an answer runs."""
        if not self.busy:
            self.worker.forget()
            self.said.configure(state="normal")
            self.said.delete("1.0", "end")
            self.said.configure(state="disabled")
            self.on_route(None)

    def leave(self) -> None:
        """End the worker, then the window: the engine is freed by the thread that has it."""
        self.worker.close()
        self.worker.join()
        self.destroy()

    # What the worker says

    def look(self) -> None:
        """Show what has happened since the last look, but leave time for keys and drawing."""
        until = time.monotonic() + LOOK_EVERY / 1000
        while not self.worker.events.empty() and time.monotonic() < until:
            name, *values = self.worker.events.get()
            getattr(self, f"on_{name}")(*values)
        self.after(LOOK_EVERY, self.look)

    def on_progress(self, stage: str, done: int, total: int) -> None:
        """The engine opens."""
        self.status.configure(text=f"{stage.capitalize()}: {done} of {total}")

    def on_ready(self, adapters: int) -> None:
        """The engine is open."""
        self.set_busy(False, f"{adapters} adapters")

    def on_failed(self, problem: str) -> None:
        """The engine is not there, or no more: nothing can be asked."""
        self.say(problem + "\n", "problem")
        self.set_busy(True, "There is no model")

    def on_end(self, problem: str) -> None:
        """The answer has ended."""
        self.say("\n")
        self.say(problem and problem + "\n", "problem")
        self.set_busy(False, "Return sends, Ctrl+L begins anew, Ctrl+Q leaves")

    def set_busy(self, busy: bool, text: str) -> None:
        """Offer what can be done now."""
        self.busy = busy
        self.status.configure(text=text)
        self.sender.state(["disabled" if busy else "!disabled"])
        self.stopper.state(["!disabled" if busy else "disabled"])

    def say(self, text: str, tag: str = "") -> None:
        """Add to the conversation, and keep its end in view."""
        self.said.configure(state="normal")
        self.said.insert("end", text, tag)
        self.said.configure(state="disabled")
        self.said.see("end")

    on_piece = say

    def on_route(self, route: Route | None) -> None:
        """The adapters of an answer, with what is applied of each as a bar."""
        for child in self.side.winfo_children():
            child.destroy()
        ttk.Label(self.side, text="Answered by", style="Head.TLabel").grid(sticky="w", pady=(0, 8))
        for name, weight in (route.applied if route else {}).items():
            line = ttk.Frame(self.side)
            line.grid(sticky="ew", pady=(6, 3))
            line.columnconfigure(0, weight=1)
            ttk.Label(line, text=name).grid(row=0, column=0, sticky="w")
            ttk.Label(line, text=f"{weight:.2f}", style="Pale.TLabel").grid(row=0, column=1)
            ttk.Progressbar(self.side, value=100 * weight, length=210).grid(sticky="ew")
        if route is not None and (rest := 1 - sum(route.applied.values())) > 0.005:
            text = f"and the base model: {rest:.2f}" if route.names else "the base model alone"
            ttk.Label(self.side, text=text, style="Pale.TLabel").grid(sticky="w", pady=(12, 0))


def main(arguments: list[str]) -> int:
    """Open the window and the engine, and stay until the window is closed; the exit code."""
    if len(arguments) not in (0, 2):
        print("usage: tk_chat.py [MODEL ADAPTERS]", file=sys.stderr)
        return 2
    model, adapters = arguments if arguments else ("demo", None)
    worker = Worker(model, adapters)
    try:
        window = Window(worker)
    except tk.TclError as error:
        print(f"tk_chat.py: there is no window without a display: {error}", file=sys.stderr)
        return 1
    worker.start()
    window.mainloop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
