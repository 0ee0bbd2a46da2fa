"""Requests made up from the published OpenAPI document: none may be the server's own fault.

A longer run: SCHEMATHESIS_EXAMPLES=2000 python -m pytest tests/test_server_openapi.py
"""

import os
import warnings

import hypothesis
import pytest

from logo_local.fake import FakeLoGo
from logo_local.server.app import create_app

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # schemathesis' own
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        response_schema_conformance,
        status_code_conformance,
    )

N_EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "15"))
app = create_app([FakeLoGo({"reverse": 1.0, "sort-words": 3.0}, [["apple ", "pear"]])])
schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"host": "localhost"})


@schema.parametrize()
@hypothesis.settings(
    max_examples=N_EXAMPLES,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@pytest.mark.filterwarnings("ignore")
def test_no_request_is_the_servers_own_fault(case):
    case.call_and_validate(
        headers={"host": "localhost"},
        checks=[not_a_server_error, status_code_conformance, response_schema_conformance],
    )


def test_the_document_names_every_address():
    paths = app.openapi()["paths"]
    assert set(paths) == {
        *("/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/adapters"),
        *("/v1/adapters/rescan", "/v1/route", "/v1/embeddings", "/v1/completions"),
        "/v1/chat/completions",
    }
    for path in paths.values():
        for operation in path.values():
            assert operation["summary"]
            assert "422" not in operation["responses"]
