"""Wait for the results of a job while the client is connected."""

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
    """The only result of a job."""
    item = await first_of(job.__aiter__(), job, request)
    if item is None:
        raise RequestError("the answer was stopped", status=503, code="stopped")
    return item


async def first_of(items: AsyncIterator[Any], job: Job, request: Request) -> Any:
    """The first item, or None; the job is cancelled if the client disconnects before it."""
    item = asyncio.ensure_future(anext(items, None))
    gone = asyncio.ensure_future(client_left(request))
    try:
        await asyncio.wait((item, gone), return_when=asyncio.FIRST_COMPLETED)
        if not item.done():
            raise RequestError("the client has disconnected", status=499, code="gone")
        return item.result()
    except Exception as error:
        job.cancel()
        raise told(error) from error
    except BaseException:
        job.cancel()
        raise
    finally:
        for task in (item, gone):
            if not task.done():  # awaiting a failed one would raise its error again
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        del item, gone, task  # an error's traceback holds this frame: avoid a cycle


async def client_left(request: Request) -> None:
    """Return once the client has disconnected. The body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def told(error: Exception) -> RequestError:
    """The error for the client; unexpected errors are logged in full."""
    failed = as_request_error(error)
    if failed.status == 500:
        log.error("a request failed", exc_info=error)
    return failed
