"""The line before the engines: order, bounds, cancelling, an orderly end. No HTTP here."""

import asyncio
import threading

import pytest

from logo_local.fake import FakeLoGo
from logo_local.server.failures import RequestError
from logo_local.server.workers import Workers


def engine():
    return FakeLoGo({"a": 1.0})


def run(scenario, engines=1, **settings):
    """Run `scenario(workers)` on an event loop, and close the workers behind it."""

    async def main():
        workers = Workers(
            [engine() for _ in range(engines)], **{"most_waiting": 8, "seconds": 60.0, **settings}
        )
        try:
            return await asyncio.wait_for(scenario(workers), 30)
        finally:
            await workers.close()

    return asyncio.run(main())


def works(log, name, gate=None):
    """Work that notes its name, and waits for `gate` before its second item."""

    def work(_llm):
        log.append(name)
        yield f"{name}1"
        if gate is not None:
            gate.wait(20)
        yield f"{name}2"

    return work


async def all_of(job):
    return [item async for item in job]


def test_one_engine_answers_one_at_a_time_in_the_order_of_arrival():
    async def scenario(workers):
        log, gate = [], threading.Event()
        jobs = [workers.submit(works(log, name, gate)) for name in "abc"]
        assert (workers.n_running, len(workers.waiting)) == (1, 2)
        gate.set()
        return log, [await all_of(job) for job in jobs]

    log, items = run(scenario)
    assert log == ["a", "b", "c"]
    assert items == [[f"{name}1", f"{name}2"] for name in "abc"]


def test_several_engines_work_at_once():
    async def scenario(workers):
        together = threading.Barrier(2)

        def work(llm):
            together.wait(20)  # passed by two at once only
            yield llm

        return await asyncio.gather(all_of(workers.submit(work)), all_of(workers.submit(work)))

    (one,), (other,) = run(scenario, engines=2)
    assert one is not other


def test_who_comes_when_the_line_is_full_is_told_when_to_come_back():
    async def scenario(workers):
        gate = threading.Event()
        jobs = [workers.submit(works([], "a", gate)) for _ in range(3)]
        with pytest.raises(RequestError, match="2 requests are waiting") as caught:
            workers.submit(works([], "late"))
        gate.set()
        await asyncio.gather(*map(all_of, jobs))
        workers.submit(works([], "later"))
        return caught.value

    error = run(scenario, most_waiting=2)
    assert error.status == 429
    assert int(error.headers["Retry-After"]) >= 1


def test_a_cancelled_job_leaves_the_line():
    async def scenario(workers):
        log, gate = [], threading.Event()
        first, second, third = (workers.submit(works(log, name, gate)) for name in "abc")
        second.cancel()
        assert len(workers.waiting) == 1
        gate.set()
        await all_of(first), await all_of(third)
        return log

    assert run(scenario) == ["a", "c"]


def test_a_cancelled_job_is_told_to_stop():
    async def scenario(workers):
        begun = threading.Event()

        def work(llm):
            yield "begun"
            begun.wait(20)
            yield llm.should_stop()

        job = workers.submit(work)
        items = job.__aiter__()
        assert await anext(items) == "begun"
        assert not workers.engines[0].should_stop()
        job.cancel()
        begun.set()
        assert await anext(items) is True
        # The next one is not told so.
        return await all_of(workers.submit(lambda llm: iter([llm.should_stop()])))

    assert run(scenario) == [False]


def test_the_time_for_an_answer_counts_from_when_it_begins():
    async def scenario(workers):
        gate = threading.Event()
        first = workers.submit(works([], "a", gate))
        second = workers.submit(lambda llm: iter([llm.should_stop()]))
        await asyncio.sleep(0.3)
        assert first.should_stop()
        gate.set()
        await all_of(first)
        assert second.waited > 0.2
        return await all_of(second)

    assert run(scenario, seconds=0.2) == [False]


def test_an_error_ends_the_job_and_not_the_lane():
    def broken(_llm):
        yield 1
        raise RuntimeError("out of order")

    async def scenario(workers):
        with pytest.raises(RuntimeError, match="out of order"):
            await all_of(workers.submit(broken))
        return await all_of(workers.submit(works([], "a")))

    assert run(scenario) == ["a1", "a2"]


def test_not_even_an_exit_within_a_job_ends_the_lane():
    def leaving(_llm):
        yield 1
        raise SystemExit(3)

    async def scenario(workers):
        with pytest.raises(RuntimeError, match="SystemExit"):
            await all_of(workers.submit(leaving))
        return await all_of(workers.submit(works([], "a")))

    assert run(scenario) == ["a1", "a2"]


def test_draining_sends_away_who_waits_and_lets_the_answer_end():
    async def scenario(workers):
        gate = threading.Event()
        running, waiting = workers.submit(works([], "a", gate)), workers.submit(works([], "b"))
        workers.drain_soon()
        with pytest.raises(RequestError, match="closing"):
            await all_of(waiting)
        with pytest.raises(RequestError, match="closing") as caught:
            workers.submit(works([], "c"))
        gate.set()
        return caught.value.status, await all_of(running)

    assert run(scenario) == (503, ["a1", "a2"])


def test_work_for_all_engines_reaches_each_once_when_it_is_free():
    async def scenario(workers):
        gate = threading.Event()
        busy = workers.submit(works([], "a", gate))
        jobs = workers.submit_to_all(lambda llm: iter([llm]))
        later = [workers.submit(works([], name)) for name in "bc"]
        gate.set()
        found = [await all_of(job) for job in jobs]
        await asyncio.gather(*map(all_of, (busy, *later)))
        assert [llm for (llm,) in found] == workers.engines
        return workers.n_running, len(workers.waiting)

    assert run(scenario, engines=2) == (0, 0)


def test_a_conversation_goes_on_with_the_engine_that_has_read_it():
    async def scenario(workers):
        gate = threading.Event()

        def work(llm):
            gate.wait(20)
            yield llm

        jobs = [workers.submit(work, key) for key in ("one\n", "two\n")]
        gate.set()
        (one,), (two,) = [await all_of(job) for job in jobs]
        assert one is not two
        for key, expected in (("two\nmore", two), ("one\nmore", one), ("two\nmore\nand", two)):
            assert await all_of(workers.submit(work, key)) == [expected]
        return True

    assert run(scenario, engines=2)
