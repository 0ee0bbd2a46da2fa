"""Waiting for what a job yields, as long as the client does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from fastapi import Request

from .failures import RequestError, as_request_error
from .workers import Job

log = logging.getLogger(__name__)


async def only(job: Job, request: Request) -> Any:
    """The one thing that a job yields."""
    item = await first_of(job.__aiter__(), job, request)
    if item is None:
        raise RequestError("the answer was stopped", status=503, code="stopped")
    return item


async def first_of(items: AsyncIterator[Any], job: Job, request: Request) -> Any:
    """The first item, or None; a client that goes while it is waited for takes the job along."""
    item = asyncio.ensure_future(anext(items, None))
    gone = asyncio.ensure_future(client_left(request))
    try:
        await asyncio.wait((item, gone), return_when=asyncio.FIRST_COMPLETED)
        if not item.done():
            raise RequestError("the client has gone", status=499, code="gone")
        return item.result()
    except Exception as error:
        job.cancel()
        raise told(error) from error
    except BaseException:
        job.cancel()
        raise
    finally:
        for task in (item, gone):
            if not task.done():  # to wait for one that failed would raise its error once more
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        del item, gone, task  # an error's traceback holds this frame: no cycle through them


async def client_left(request: Request) -> None:
    """Return once the client has disconnected. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def told(error: Exception) -> RequestError:
    """What the client is told; the log is told all of what nobody expected."""
    failed = as_request_error(error)
    if failed.status == 500:
        log.error("a request failed", exc_info=error)
    return failed
