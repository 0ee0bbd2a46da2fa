"""Several engines in one process, each in a thread of its own, and one engine behind a lock."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import pytest

from logo_local.engine import LoGo
from logo_local.routing.example_prompts import TaughtPrompts

PROMPTS = [f"{word} {word[::-1]} beta" for word in ("alpha", "gamma", "one", "two", "three")]
GREEDY = {"max_tokens": 12, "temperature": 0.0}


def open_engine(base, adapters, **settings):
    return LoGo(base, adapters, n_ctx=128, n_threads=1, n_threads_batch=1, **settings)


def answer(llm, prompt):
    reply = llm(prompt, **GREEDY)
    return reply["choices"][0]["text"], reply["logo"]["route"]["adapters"]


# Norms of adapters by their stack, and every adapter's evaluation: two ways to hold adapters.
SETTINGS = [{"signal": "norm", "top_k": 3}, {"probe": "each", "mixture": "scales", "top_k": 2}]


@pytest.fixture
def engines(random_base, random_adapters):
    made = [open_engine(random_base, random_adapters, **settings) for settings in SETTINGS]
    yield made
    for llm in made:
        llm.close()


def test_two_engines_at_once_answer_as_each_alone(engines):
    alone = [[answer(llm, prompt) for prompt in PROMPTS] for llm in engines]
    assert alone[0] != alone[1]
    start = Barrier(len(engines))

    def all_answers(llm):
        start.wait()
        return [[answer(llm, prompt) for prompt in PROMPTS] for _ in range(3)]

    with ThreadPoolExecutor(len(engines)) as threads:
        together = list(threads.map(all_answers, engines))
    assert together == [[one] * 3 for one in alone]


def test_opening_and_closing_beside_one_that_answers(random_base, random_adapters, engines):
    llm = engines[0]
    alone = [answer(llm, prompt) for prompt in PROMPTS]

    def come_and_go(_n):
        with open_engine(random_base, random_adapters, **SETTINGS[0]) as other:
            return answer(other, PROMPTS[0])

    with ThreadPoolExecutor(1) as thread:
        others = thread.map(come_and_go, range(3))
        together = [answer(llm, prompt) for prompt in PROMPTS]
        assert list(others) == [alone[0]] * 3
    assert together == alone


def test_one_engine_in_many_threads_behind_a_lock(engines):
    llm, lock = engines[0], Lock()
    alone = [answer(llm, prompt) for prompt in PROMPTS]

    def locked(prompt):
        with lock:
            return answer(llm, prompt)

    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(locked, PROMPTS * 2)) == alone * 2


def test_engines_that_open_in_two_threads_leave_standard_output_alone(
    random_base, random_adapters, tmp_path
):
    """In a process of its own, whose descriptors 1 and 2 are looked at afterwards."""
    code = f"""
import os, threading, time
import llama_cpp
from logo_local import LoGo

real = llama_cpp.llama_cpp.llama_model_load_from_file

def slow(*given):  # the second thread begins while the first is here, and ends after it
    time.sleep(0.2)
    return real(*given)

llama_cpp.llama_cpp.llama_model_load_from_file = slow
before = [os.fstat(n).st_ino for n in (1, 2)]
def use():
    LoGo({str(random_base)!r}, {str(random_adapters)!r}, n_ctx=256).close()

first, second = threading.Thread(target=use), threading.Thread(target=use)
first.start()
time.sleep(0.1)
second.start()
first.join()
second.join()
print("same" if [os.fstat(n).st_ino for n in (1, 2)] == before else "lost")
"""
    env = os.environ | {"LOGO_LOCAL_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "same\n"


def test_prompts_that_are_taught_in_two_threads_are_all_kept(tmp_path):
    taught = TaughtPrompts(tmp_path)

    def teach(who):
        for i in range(30):
            taught.add("key", [f"{who} {i}"])

    threads = [threading.Thread(target=teach, args=(who,)) for who in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taught.read("key")) == 90
