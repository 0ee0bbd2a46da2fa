"""Who may ask: names, origins, keys, sizes. Every attempt has its own line here."""

import socket
import time

import pytest
from serving import serving
from starlette.testclient import TestClient

from logo_local.fake import FakeLoGo
from logo_local.server import middleware
from logo_local.server.app import create_app
from logo_local.server.middleware import MAX_BODY, Rules

QUESTION = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def asking():
    """asking(rules): a client of a server under these rules."""
    opened = []

    def client(rules=None, llm=None):
        app = create_app([llm or FakeLoGo({"a": 1.0}, ["yes"])], rules=rules)
        opened.append(TestClient(app, base_url="http://localhost:8080"))
        return opened[-1].__enter__()

    yield client
    for one in opened:
        one.__exit__(None, None, None)


def raw(address, text):
    """What the server says to these bytes, until it closes."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(text.encode() if isinstance(text, str) else text)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def get(path, headers=""):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LocalHost", "localhost:99"])
def test_names_of_this_machine_are_allowed(asking, host):
    assert asking().get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"),
        *("", "192.168.0.7", "localhost@evil.example", "[::2]", "127.0.0.2", "localhost:80:80"),
    ],
)
@pytest.mark.parametrize("path", ["/health", "/", "/v1/models"])
def test_other_names_are_refused_with_the_remedy(asking, host, path):
    answer = asking().get(path, headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_not_allowed"
    assert "--allow-host" in answer.json()["error"]["hint"]


def test_a_name_can_be_allowed(asking):
    client = asking(Rules(hosts=["box.lan"]))
    assert client.get("/health", headers={"host": "box.lan:8080"}).status_code == 200
    assert client.get("/health", headers={"host": "localhost"}).status_code == 403


def test_any_number_is_a_name_where_others_may_ask(asking):
    client = asking(Rules(any_address=True))
    for host, status in (("192.168.0.7", 200), ("[fe80::1]:80", 200), ("evil.example", 403)):
        assert client.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "http://localhost:9999", "https://localhost:8080"),
        *("http://localhost:8080.evil.example", "file://", "app://other", "x"),
    ],
)
def test_pages_from_elsewhere_are_refused(asking, origin):
    llm = FakeLoGo({"a": 1.0}, ["yes"])
    client = asking(Rules(origins=["app://mine"]), llm)
    answer = client.post("/v1/chat/completions", json=QUESTION, headers={"origin": origin})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in answer.headers
    assert not llm.history
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    assert client.options("/v1/chat/completions", headers=preflight).status_code == 403


def test_its_own_page_may_ask(asking):
    headers = {"origin": "http://localhost:8080"}
    answer = asking().post("/v1/chat/completions", json=QUESTION, headers=headers)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("allowed", "origin"),
    [
        ("app://mine", "app://mine"),
        ("tauri://localhost", "tauri://localhost"),
        ("vscode-webview://*", "vscode-webview://0kq7"),
        ("https://*.example.org", "https://chat.example.org"),
    ],
)
def test_pages_that_are_listed_may_ask(asking, allowed, origin):
    client = asking(Rules(origins=[allowed], api_key="k"))
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    answer = client.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 204
    assert "authorization" in answer.headers["access-control-allow-headers"]
    asked = {**preflight, "access-control-request-headers": "authorization,x-stainless-lang"}
    answer = client.options("/v1/chat/completions", headers=asked)
    assert "x-stainless-lang" in answer.headers["access-control-allow-headers"]
    headers = {"origin": origin, "authorization": "Bearer k"}
    answer = client.post("/v1/chat/completions", json=QUESTION, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in answer.headers


def test_a_star_in_an_origin_stays_within_its_host(asking):
    rules = Rules(origins=["https://*.example.org"])
    assert not rules.allows_origin("https://evil.example/.example.org")
    assert not rules.allows_origin("https://example.org")


@pytest.mark.parametrize("method_path", ["GET /v1/models", "GET /metrics", "POST /v1/route"])
@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer", "Basic secret-key", "Bearer secret-key x"]
)
def test_without_the_key_nothing_is_told(asking, method_path, authorization):
    method, path = method_path.split()
    headers = {"authorization": authorization} if authorization else {}
    answer = asking(Rules(api_key="secret-key")).request(method, path, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "secret-key" not in answer.text.replace(authorization or "", "")


def test_with_the_key_everything_is(asking):
    client = asking(Rules(api_key="secret-key"))
    headers = {"authorization": "bearer secret-key"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    for public in middleware.PUBLIC:
        assert client.get(public).status_code == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
def test_forms_of_other_pages_are_refused(asking, kind):
    """What a page may send without asking first has these types only."""
    answer = asking().post("/v1/route", content=b'{"prompt":"x"}', headers={"content-type": kind})
    assert answer.status_code == 415


@pytest.mark.parametrize("declared", [True, False])
def test_ten_megabytes_are_refused(asking, declared):
    body = b'{"prompt": "' + b"x" * 10_000_000 + b'"}'
    content = body if declared else (body[i : i + 65536] for i in range(0, len(body), 65536))
    headers = {"content-type": "application/json"}
    answer = asking().post("/v1/route", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"text"', b'{"prompt": "\xff\xfe"}', b"\x00" * 100),
        *(b'{"prompt": NaN}', b'{"prompt": "x", "logo": {"top_k": 1e999}}', b"[" * 100_000),
        *(b'{"prompt": "\\ud800"}', b'{"prompt": "x", "prompt ": 1}', b'{"model": 5}'),
        *(b'{"prompt": "x", "lora": {"a": Infinity}}', b'{"prompt": ""}'),
    ],
)
def test_bodies_that_are_no_request(asking, body):
    client = asking()
    for path in ("/v1/route", "/v1/completions", "/v1/chat/completions", "/v1/embeddings"):
        answer = client.post(path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path",
    [
        *("/../etc/passwd", "/page/../app.py", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd"),
        *("/page/page.html", "/v1/models/..%2f..%2fetc%2fpasswd", "/page.js/../middleware.py"),
    ],
)
def test_no_path_leads_to_a_file(path):
    with serving(create_app([FakeLoGo({"a": 1.0})])) as address:
        answer = raw(
            address, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        assert answer.split(b" ")[1] == b"404"
        assert b"root:" not in answer


def test_adapters_are_named_never_fetched_by_path(asking):
    client = asking()
    for name in ("../a", "/etc/passwd", "a.gguf", "..", "C:\\a"):
        for wanted in ({"model": f"base:{name}"}, {"lora": {name: 1.0}}):
            answer = client.post("/v1/chat/completions", json={**QUESTION, **wanted})
            assert answer.status_code == 404, answer.text
            assert (
                name in answer.json()["error"]["message"].encode().decode("unicode_escape")
                or repr(name) in answer.json()["error"]["message"]
            )


def test_answers_cannot_be_framed_sniffed_or_kept(asking):
    headers = asking().get("/").headers
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("n", [17_000, 60_000])
def test_headers_have_a_bound(n):
    with serving(create_app([FakeLoGo({"a": 1.0})])) as address:
        status = raw(address, get("/health", f"X: {'x' * n}\r\n")).split(b" ")[1]
        assert status in (b"400", b"431")
        assert raw(address, get("/" + "x" * n)).split(b" ")[1] in (b"400", b"431")
        assert b"200 OK" in raw(address, get("/health"))


def test_half_a_body_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(middleware, "BODY_SECONDS", 0.3)
    head = (
        "POST /v1/route HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {MAX_BODY}\r\n\r\n" + '{"prompt": "'
    )
    llm = FakeLoGo({"a": 1.0})
    with serving(create_app([llm])) as address:
        began = time.monotonic()
        assert b"408" in raw(address, head).split(b"\r\n")[0]
        assert time.monotonic() - began < 20
        host, _, port = address.removeprefix("http://").partition(":")
        socket.create_connection((host, int(port))).close()  # and one that goes half-way
        half = socket.create_connection((host, int(port)))
        half.sendall(head.encode())
        half.close()
        assert b"200 OK" in raw(address, get("/health"))
    assert not llm.history


def test_garbage_instead_of_http():
    with serving(create_app([FakeLoGo({"a": 1.0})])) as address:
        for text in (b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n"):
            assert b"200 OK" not in raw(address, text + b"\r\n\r\n")
