"""What is not HTTP, too large, too slow or not allowed is refused in bounds; others are served meanwhile."""

import datetime
import email.utils
import json
import socket
import subprocess

import pytest
from conftest import MAMBA, TEMPLATE, wait_until


def exchange(server, data, seconds=300):
    """All that the server answers to these bytes until it ends the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        for piece in [data] if isinstance(data, bytes) else data:
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
        answer = b""
        try:
            while piece := connection.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.") else None


def post(path, body, *headers):
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


@pytest.mark.parametrize(
    "data, status",
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/3.7\r\n\r\n", 400),
        (b"GET /health\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400),  # TLS
        (b"GET /health HTTP/1.0\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET http://localhost/health HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n: empty\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}", 400),
        (
            b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
        ),
        (b"GET /health HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(10_000)) + b"\r\n", 431),
        (b"GET /health HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 1_000_000 + b" HTTP/1.1\r\n\r\n", 431),
    ],
)
def test_what_is_not_http(mamba, data, status):
    assert status_of(exchange(mamba, data)) == status
    assert mamba.request("GET", "/health")[0] == 200


def test_large_bodies(mamba):
    """A gigabyte is refused before it is sent, and while it is sent in chunks."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    assert status_of(exchange(mamba, head + b"Content-Length: 1000000000\r\n\r\n")) == 413
    assert status_of(exchange(mamba, head + b"Expect: 100-continue\r\nContent-Length: 1000000000\r\n\r\n")) == 413
    before = mamba.metrics()["process_resident_memory_bytes"]
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    pieces = [head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 1000]
    assert status_of(exchange(mamba, pieces)) in (413, None), "None: it was told, and sent on"
    assert mamba.metrics()["process_resident_memory_bytes"] - before < 100e6
    body = json.dumps({"content": "a " * (1 << 20)}).encode()
    assert status_of(exchange(mamba, post("/tokenize", body, "Connection: close"))) == 200, "2 MB are taken"


@pytest.mark.parametrize(
    "version, coding, status",
    [("1.1", "chunked", 200), ("1.1", "Chunked", 200), ("1.1", "gzip, chunked", 501), ("1.1", "chunked, gzip", 501),
     ("1.1", "gzip", 501), ("1.1", "chunked\r\nTransfer-Encoding: chunked", 400), ("1.0", "chunked", 501)],
)  # fmt: skip
def test_codings_of_bodies(mamba, version, coding, status):
    """What is not decoded is not taken as it is, nor what follows as another request."""
    head = f"POST /tokenize HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += f"Connection: keep-alive\r\nTransfer-Encoding: {coding}\r\n\r\n"
    follows = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(mamba, head.encode() + b'f\r\n{"content":"a"}\r\n0\r\n\r\n' + follows)
    assert status_of(answer) == status and answer.count(b"Server: ") == (2 if status == 200 else 1)


def test_expectations(mamba):
    for expected, status in (("100-Continue", 100), ("a-cake", 417)):
        data = post("/tokenize", b'{"content": "a"}', f"Expect: {expected}", "Connection: close")
        assert status_of(exchange(mamba, data)) == status


@pytest.mark.parametrize(
    "target, host, status",
    [
        ("http://localhost/health", "localhost", 200),
        ("HTTP://LOCALHOST:80/health", "localhost", 200),
        ("http://[::1]:8080/health", "", 200),
        ("http://127.0.0.1", "localhost", 200),
        ("http://localhost/slots?a=1", "localhost", 400),
        ("http://localhost?a=1", "localhost", 200),  # the page, which takes a query
        ("http://localhost/nothing", "localhost", 404),
        ("http://localhost/health", "evil.example", 200),  # the header does not count beside a host in the target
        ("http://evil.example/health", "localhost", 403),
        ("http://me@localhost/health", "localhost", 400),
        ("http://localhost:x/health", "localhost", 400),
        ("http:///health", "localhost", 400),
        ("https://localhost/health", "localhost", 421),
        ("ftp://localhost/health", "localhost", 421),
        ("/nothing?of=http://localhost/health", "localhost", 404),
        ("health://", "localhost", 421),
        ("*", "localhost", 404),
    ],
)
def test_targets_with_a_host(mamba, target, host, status):
    """As proxies are asked: what RFC 9112, 3.2.2 has every server take."""
    data = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    answer = exchange(mamba, data)
    assert status_of(answer) == status
    if target.endswith("/health") and status == 200:
        assert answer.endswith(b'{"status":"ok"}')


def test_a_target_with_a_host_is_answered_as_its_path(mamba):
    data = post("/tokenize", b'{"content": "a"}', "Connection: close")
    absolute = data.replace(b"/tokenize", b"http://localhost/tokenize")
    tokens = exchange(mamba, data).split(b"\r\n\r\n")[1]
    assert tokens.startswith(b'{"tokens":') and exchange(mamba, absolute).split(b"\r\n\r\n")[1] == tokens


def test_answers_have_a_date(mamba):
    """Of RFC 9110, 6.6.1: errors as well, and answers in pieces."""
    stream = {"prompt": "The", "max_tokens": 1, "stream": True}
    for method, path, body in [
        ("GET", "/health", None),
        ("GET", "/nothing", None),
        ("POST", "/v1/completions", stream),
    ]:
        date = email.utils.parsedate_to_datetime(mamba.request(method, path, body)[1]["Date"])
        assert abs((datetime.datetime.now(datetime.timezone.utc) - date).total_seconds()) < 600


def test_a_body_that_is_awaited(mamba):
    body = b'{"content": "a"}'
    with socket.create_connection(("127.0.0.1", mamba.port), timeout=300) as connection:
        connection.sendall(post("/tokenize", body, "Expect: 100-continue", "Connection: close")[: -len(body)])
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(body)
        assert status_of(connection.recv(1000)) == 200
    old = post("/tokenize", body, "Expect: 100-continue").replace(b"HTTP/1.1", b"HTTP/1.0")
    assert status_of(exchange(mamba, old)) == 200, "clients of HTTP/1.0 know no 100"


def test_slow_clients_are_not_waited_for(start_server, tiny_folder):
    """Heads that come byte by byte, bodies that do not come, and streams that are not read end; others do not wait."""
    with start_server(
        tiny_folder("llama-bias"), "--head-seconds", 1, "--body-seconds", 1, "--write-seconds", 1
    ) as server:
        slow = []
        for data in (b"", b"GET /hea", post("/tokenize", b"{" * 100)[:-50]):
            slow.append(socket.create_connection(("127.0.0.1", server.port), timeout=300))
            slow[-1].sendall(data)
        assert server.request("GET", "/health")[0] == 200
        for connection in slow:
            assert connection.recv(100) == b""
            connection.close()


def test_streams_that_are_not_read_are_cancelled(start_server):
    with start_server(MAMBA, "--write-seconds", 1) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        body = {"prompt": "The", "max_tokens": 60_000, "n": 8, "logprobs": 20, "stream": True}
        connection.sendall(post("/v1/completions", json.dumps(body).encode()))
        assert status_of(connection.recv(100)) == 200
        server.becomes_idle()
        connection.close()


def test_methods_and_paths(mamba):
    for method, path, status in [
        ("GET", "/nothing", 404),
        ("GET", "/../etc/passwd", 404),
        ("GET", "/%2e%2e/x", 404),
        ("GET", "/v1/models/other", 404),
        ("POST", "/health", 405),
        ("GET", "/tokenize", 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/slots?a=1", 400),
    ]:
        found, _, answer = mamba.request(method, path)
        assert (found, answer["error"]["type"]) == (status, "invalid_request_error"), (method, path)
    assert mamba.request("GET", "/nothing")[1]["Content-Type"] == "application/json"
    assert mamba.request("POST", "/health")[1]["Allow"] == "GET, HEAD"
    status, headers, body = mamba.request("HEAD", "/health")
    assert (status, headers["Content-Length"], body) == (200, "15", "")
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        assert mamba.request("POST", "/tokenize", {"content": "a"}, headers)[0] == 415


def test_connections_are_kept(mamba):
    """Requests one after the other, the next of them sent before the answer to the last came."""
    body = b'{"content": "a"}'
    completion = json.dumps({"prompt": "The", "max_tokens": 3}).encode()
    data = post("/tokenize", body) + post("/v1/completions", completion) + post("/tokenize", body)
    answer = exchange(mamba, [data, post("/tokenize", body, "Connection: close")])
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    old = exchange(mamba, b"GET /health HTTP/1.0\r\n\r\n")
    assert status_of(old) == 200 and old.endswith(b'{"status":"ok"}')
    stream = post("/v1/completions", completion[:-1] + b', "stream": true}').replace(b"HTTP/1.1", b"HTTP/1.0")
    assert exchange(mamba, stream).endswith(b"data: [DONE]\n\n")


def test_what_comes_too_early_is_not_kept(mamba):
    """More than the buffer holds of the next requests: this one's answer is the last."""
    completion = post("/v1/completions", json.dumps({"prompt": "The", "max_tokens": 30}).encode())
    answer = exchange(mamba, completion + post("/tokenize", b'{"content": "' + b"a" * 300_000 + b'"}'))
    assert answer.count(b"HTTP/1.1 ") == 1 and status_of(answer) == 200


@pytest.mark.parametrize("first", ["refused", "running"])
def test_who_sends_without_end_is_cut_off(mamba, first):
    """After an error, and while an answer is being made."""
    body = json.dumps({"prompt": "The", "max_tokens": 60_000}).encode()
    if first == "refused":
        body = b"{" * (5 << 20)
    with socket.create_connection(("127.0.0.1", mamba.port), timeout=300) as connection:
        connection.sendall(post("/v1/completions", body)[: 1 << 20])
        sent = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            while sent < 100 << 20:
                sent += connection.send(b"x" * (1 << 16))
        assert sent < 100 << 20
    mamba.becomes_idle()


def test_keys(start_server, tiny_folder, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("one-key \t\r\n \n\n\tanother\n")
    with start_server(tiny_folder("llama-bias"), "--api-key-file", keys) as server:
        for path in ("/health", "/", "/openapi.json"):
            assert server.request("GET", path)[0] == 200
        for path in ("/v1/models", "/metrics", "/slots"):
            for wrong in (
                "",
                "Bearer",
                "Bearer ",
                "Bearer one-ke",
                "Bearer one-keyy",
                "Bearer one-key one-key",
                "one-key",
                "Basic one-key",
            ):
                status, headers, answer = server.request("GET", path, headers={"Authorization": wrong} if wrong else {})
                assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
                assert headers["WWW-Authenticate"] == "Bearer"
            for right in ("Bearer one-key", "bearer another"):
                assert server.request("GET", path, headers={"Authorization": right})[0] == 200
        assert server.request("POST", "/v1/completions", {"prompt": "A"})[0] == 401
        assert status_of(exchange(server, post("/v1/completions", b"x" * 1000)[:-10])) == 401, "the body is not awaited"


def test_key_files_without_a_key(start_server, tiny_folder, tmp_path):
    (tmp_path / "keys").write_text("\n \t\n")
    for name, fault in [("keys", "expected an API key on each"), ("none", "cannot read")]:
        done = subprocess.run(
            [start_server.command, "serve", tiny_folder("llama-bias"), "--api-key-file", tmp_path / name],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and fault in done.stderr and done.stderr.count("\n") == 1


def test_pages_of_other_origins(start_server, tiny_folder, mamba):
    """None is let in, but the server's own; with --cors-origin, those that are listed."""
    own = {"Origin": mamba.url}
    assert mamba.request("POST", "/tokenize", {"content": "a"}, own)[0] == 200
    for origin in ("https://evil.example", "null", "http://127.0.0.1", mamba.url + "0"):
        status, headers, answer = mamba.request("POST", "/tokenize", {"content": "a"}, {"Origin": origin})
        assert (status, answer["error"]["code"]) == (403, "origin_not_allowed")
        assert f"--cors-origin {origin}" in answer["error"]["message"]
        assert "Access-Control-Allow-Origin" not in headers
        assert mamba.request("OPTIONS", "/tokenize", headers={"Origin": origin})[0] == 403
    listed = "https://page.example"
    keys = tiny_folder("llama-bias") / "keys"
    keys.write_text("secret")
    options = ("--cors-origin", listed, "--cors-origin", "https://b.example", "--api-key-file", keys)
    with start_server(tiny_folder("llama-bias"), *options) as server:
        status, headers, _ = server.request(
            "OPTIONS", "/v1/chat/completions", headers={"Origin": listed, "Access-Control-Request-Method": "POST"}
        )
        assert (
            status == 204
            and headers["Access-Control-Allow-Origin"] == listed
            and "POST" in headers["Access-Control-Allow-Methods"]
        )
        assert "Authorization" in headers["Access-Control-Allow-Headers"]
        # Those of OpenAI's client for JavaScript.
        wanted = "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-retry-count"
        status, headers, _ = server.request(
            "OPTIONS",
            "/v1/chat/completions",
            headers={
                "Origin": listed,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": wanted,
            },
        )
        assert (status, headers["Access-Control-Allow-Headers"]) == (204, wanted)
        assert "Access-Control-Request-Headers" in headers["Vary"]
        status, headers, _ = server.request(
            "POST", "/tokenize", {"content": "A"}, {"Origin": listed, "Authorization": "Bearer secret"}
        )
        assert (status, headers["Access-Control-Allow-Origin"], headers["Vary"]) == (
            200,
            listed,
            "Origin, Access-Control-Request-Headers",
        )
        assert "X-Request-Id" in headers["Access-Control-Expose-Headers"]
        assert server.request("POST", "/tokenize", {"content": "A"}, {"Origin": listed})[0] == 401
        assert server.request("OPTIONS", "/tokenize", headers={"Origin": "https://evil.example"})[0] == 403


def test_origins_that_no_browser_sends(start_server, tiny_folder):
    never = ("https://page.example/", "page.example", "https://Page.example", "https://", "https://a b", "")
    for origin in (*never, "https://page.example:443", "http://page.example:80", "https://münchen.example"):
        done = subprocess.run(
            [start_server.command, "serve", tiny_folder("llama-bias"), "--port", "0", "--cors-origin", origin],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "expected one as" in done.stderr


def test_names_of_other_machines(start_server, tiny_folder, mamba, tmp_path):
    """A page whose name was made to lead to this machine reaches nothing, though its origin is the host it asks."""

    def ask(server, host, path="/health", **headers):
        return server.request("GET", path, headers={"Host": host, **headers})

    for host in ("evil.example", f"evil.example:{mamba.port}", "127.0.0.1.evil.example"):
        for path in ("/health", "/", "/v1/models", "/nothing"):
            for headers in ({}, {"Origin": f"http://{host}"}):
                status, _, answer = ask(mamba, host, path, **headers)
                assert (status, answer["error"]["code"]) == (403, "host_not_allowed")
    for host in ("x:8y", ":80", "[", "[:", "[]", "[::1]x", "::1", "me@localhost", "local host", "localhost/"):
        status, _, answer = ask(mamba, host)
        assert status == 400 and host in answer["error"]["message"]
    assert "--host evil.example," in ask(mamba, "evil.example:80")[2]["error"]["message"]
    for host in (f"localhost:{mamba.port}", "LOCALHOST", f"127.0.0.1:{mamba.port}", "[::1]:80", "10.0.0.1"):
        assert ask(mamba, host)[0] == ask(mamba, host, Origin=f"http://{host}")[0] == 200
    (tmp_path / "keys").write_text("secret")
    with start_server(tiny_folder("llama-bias"), "--api-key-file", tmp_path / "keys") as server:
        # Behind a proxy: the key keeps others out.
        assert ask(server, "box.example", Origin="https://box.example")[0] == 200
    listed = "http://box.lan:8080"
    with start_server(tiny_folder("llama-bias"), "--host", "0.0.0.0", "--cors-origin", listed) as server:
        for host in ("box.example", "box.lan"):
            for headers in ({}, {"Origin": f"http://{host}"}):
                status, _, answer = ask(server, host, "/v1/models", **headers)
                assert (status, answer["error"]["code"]) == (403, "host_not_allowed")
                for remedy in (f"--host {host}", f"--cors-origin http://{host}", "--api-key-file"):
                    assert remedy in answer["error"]["message"]
        for host in ("10.0.0.1:80", f"localhost:{server.port}", "box.lan:8080"):
            assert ask(server, host)[0] == ask(server, host, Origin=f"http://{host}")[0] == 200


def test_large_bodies_at_once(mamba):
    """Those that do not come take no more than there is for all; small ones are served. Of chunks counts what came."""
    head = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    announced = [socket.create_connection(("127.0.0.1", mamba.port), timeout=300) for _ in range(32)]
    announced += [socket.create_connection(("127.0.0.1", mamba.port), timeout=300) for _ in range(32)]
    for i, connection in enumerate(announced):
        length = b"Transfer-Encoding: chunked" if i % 2 else b"Content-Length: 4194304"
        connection.sendall(head + b"Expect: 100-continue\r\n" + length + b"\r\n\r\n")
    for connection in announced:
        assert status_of(connection.recv(100)) == 100
    chunks = head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    small, large = ({"content": "a" * size} for size in (60_000, 70_000))
    for body, status in ((small, 200), (large, 503)):
        text = json.dumps(body).encode()
        sent = [b"%x\r\n%s\r\n" % (len(part), part) for part in (text[:40_000], text[40_000:])]
        assert status_of(exchange(mamba, chunks + b"".join(sent) + b"0\r\n\r\n")) == status
        assert mamba.request("POST", "/tokenize", body)[0] == status
    assert mamba.request("POST", "/tokenize", {"content": "a" * 50_000})[0] == 200
    for connection in announced:
        connection.close()
    wait_until(lambda: mamba.metrics()["hxq_connections"] == 1)
    assert mamba.request("POST", "/tokenize", {"content": "a" * 100_000})[0] == 200


def test_the_page(mamba):
    status, headers, page = mamba.request("GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "http://" not in page and "https://" not in page and "src=" not in page, "it needs nothing from elsewhere"


def test_silence_is_broken_by_comments(start_server):
    """A stream that waits for its turn."""
    with start_server(MAMBA, "--template", TEMPLATE, "--parallel", 1, "--silence-seconds", 0.2) as server:
        body = {"prompt": "The", "max_tokens": 60_000, "stream": True}
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=300) as busy,
            socket.create_connection(("127.0.0.1", server.port), timeout=300) as silent,
        ):
            busy.sendall(post("/v1/completions", json.dumps(body).encode()))
            busy.recv(1 << 16)
            silent.sendall(post("/v1/completions", json.dumps(body).encode()))
            answer = b""
            while answer.count(b": \n\n") < 3 and (more := silent.recv(1 << 16)):
                answer += more
            assert answer.count(b": \n\n") >= 3 and b"data" not in answer
        server.becomes_idle()
