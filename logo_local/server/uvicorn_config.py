"""The settings of uvicorn that all of this program's servers share."""

from __future__ import annotations

from typing import Any

import uvicorn


def uvicorn_config(app: Any, **settings: Any) -> uvicorn.Config:
    """The configuration for an ASGI application; `settings` are further ones of uvicorn.

    No logs, no `server` header, and no trust in the headers of proxies.
    """
    return uvicorn.Config(
        app,
        http="h11",  # limits the size of headers
        loop="asyncio",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        **settings,
    )
