"""The page in a real browser, where one is installed."""

import functools
import http.server
import json
import sys
import threading

import pytest
from conftest import MAMBA, ROOT, TEMPLATE

sys.path.insert(0, str(ROOT / "tests"))
from browser import open_browser  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


def lines(browser, kind):
    return browser.run(f"return [...document.querySelectorAll('#log .{kind}')].map((line) => line.textContent)")


def test_a_conversation(browser, mamba):
    browser.ask("POST", "/url", {"url": mamba.url})
    browser.wait_for(f"document.querySelector('#model').textContent === '{mamba.name}'")
    browser.run("document.querySelector('#temperature').value = 0; document.querySelector('#tokens').value = 12")
    said = []
    for message in ("Where is London?", "And \U0001f600 <b>Paris</b>?"):
        browser.run(f"document.querySelector('#text').value = {json.dumps(message)}")
        browser.click("#send")
        browser.wait_for("document.querySelector('#send').textContent === 'Send'")
        said.append({"role": "user", "content": message})
        expected = mamba.post("/v1/chat/completions", messages=said, temperature=0, max_tokens=12)
        said.append(expected["choices"][0]["message"])
        said[-1] = {key: said[-1][key] for key in ("role", "content")}
    assert lines(browser, "user") == [message["content"] for message in said[::2]], "text, not markup"
    assert lines(browser, "assistant") == [message["content"] for message in said[1::2]]
    assert lines(browser, "fault") == []
    errors = [entry["message"] for entry in browser.log("browser") if entry["level"] == "SEVERE"]
    assert [error for error in errors if "favicon" not in error] == []


def test_stopping_an_answer(browser, mamba):
    browser.ask("POST", "/url", {"url": mamba.url})
    browser.wait_for(f"document.querySelector('#model').textContent === '{mamba.name}'")
    browser.run("document.querySelector('#tokens').value = 60000")
    browser.type("#text", "Tell me all\ue007")  # and the enter key
    browser.wait_for("document.querySelector('#log .assistant')?.textContent.length > 20")
    assert mamba.generations() == (0, 0, 1, 0)
    browser.click("#send")
    browser.wait_for("document.querySelector('#send').textContent === 'Send'")
    mamba.becomes_idle()
    browser.click("#clear")
    browser.wait_for("document.querySelector('#log').childElementCount === 0")


def test_a_new_conversation_during_an_answer(browser, mamba):
    """It has nothing of the old one, whose answer ends."""
    browser.ask("POST", "/url", {"url": mamba.url})
    browser.wait_for(f"document.querySelector('#model').textContent === '{mamba.name}'")
    browser.run("document.querySelector('#tokens').value = 60000")
    browser.type("#text", "Tell me all\ue007")
    browser.wait_for("document.querySelector('#log .assistant')?.textContent.length > 20")
    said = []
    for i, message in enumerate(("Where is London?", "And Paris?")):
        browser.run(
            f"if ({i} === 0) document.querySelector('#clear').click();"
            "document.querySelector('#temperature').value = 0; document.querySelector('#tokens').value = 12;"
            f"document.querySelector('#text').value = {json.dumps(message)};"
            "document.querySelector('#form').requestSubmit()"
        )
        browser.wait_for("document.querySelector('#send').textContent === 'Send'")
        said.append({"role": "user", "content": message})
        expected = mamba.post("/v1/chat/completions", messages=said, temperature=0, max_tokens=12)
        said.append({"role": "assistant", "content": expected["choices"][0]["message"]["content"]})
    assert lines(browser, "user") == [message["content"] for message in said[::2]]
    assert lines(browser, "assistant") == [message["content"] for message in said[1::2]]
    assert lines(browser, "fault") == []
    mamba.becomes_idle()


def test_a_page_of_another_origin_with_the_headers_of_openais_client(browser, start_server, tmp_path):
    (tmp_path / "index.html").write_text("<!doctype html><title>elsewhere</title>")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        origin = f"http://127.0.0.1:{pages.server_port}"
        with start_server(MAMBA, "--cors-origin", origin) as server:
            browser.ask("POST", "/url", {"url": origin})
            headers = {"Content-Type": "application/json", "Authorization": "Bearer none", "X-Stainless-Lang": "js"}
            body = json.dumps({"prompt": "The", "max_tokens": 2})
            browser.run(
                f"fetch('{server.url}/v1/completions', "
                f"{{method: 'POST', headers: {json.dumps(headers)}, body: '{body}'}})"
                ".then((response) => { window.found = [response.status, response.headers.get('X-Request-Id')]; })"
                ".catch((error) => { window.found = [String(error)]; })"
            )
            browser.wait_for("window.found !== undefined")
            status, request_id = browser.run("return window.found")
            assert status == 200 and request_id.startswith("req_")
        pages.shutdown()


def test_a_key_is_asked_for(browser, start_server, tmp_path):
    (tmp_path / "keys").write_text("secret")
    with start_server(MAMBA, "--template", TEMPLATE, "--api-key-file", tmp_path / "keys") as server:
        browser.ask("POST", "/url", {"url": server.url})
        browser.wait_for("document.querySelector('#text').placeholder === 'A key is needed'")
        browser.type("#text", "Hello")
        browser.click("#send")
        browser.wait_for("document.querySelector('#log .fault') !== null")
        assert "key" in lines(browser, "fault")[0]
        browser.type("#key", "secret\ue004")  # and the tab key
        browser.wait_for(f"document.querySelector('#model').textContent === '{server.name}'")
