"""A real browser without a screen, where one is installed (Debian: chromium chromium-driver)."""

import contextlib
import http.client
import json
import re
import shutil
import subprocess
import time

import pytest


class Browser:
    """Chromium without a screen, by the WebDriver protocol."""

    def __init__(self, port):
        self.port = port
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]}
        logs = {"browser": "ALL", "performance": "ALL"}
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": logs}}
        self.session = ""
        self.session = "/" + self.ask("POST", "", {"capabilities": wanted})["sessionId"]

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, f"/session{self.session}{path}", None if body is None else json.dumps(body))
        answer = json.loads(connection.getresponse().read())["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def log(self, kind):
        """What the log of that kind ("browser", "performance") has got since it was last asked for."""
        return self.ask("POST", "/se/log", {"type": kind})

    def run(self, script):
        return self.ask("POST", "/execute/sync", {"script": script, "args": []})

    def element(self, selector):
        found = self.ask("POST", "/element", {"using": "css selector", "value": selector})
        return next(iter(found.values()))

    def type(self, selector, text):
        self.ask("POST", f"/element/{self.element(selector)}/value", {"text": text})

    def click(self, selector):
        self.ask("POST", f"/element/{self.element(selector)}/click", {})

    def wait_for(self, condition):
        """Until a JavaScript expression is true."""
        end = time.monotonic() + 60
        while not self.run(f"return {condition}"):
            assert time.monotonic() < end, (condition, self.run("return document.body.innerText"))
            time.sleep(0.05)


@contextlib.contextmanager
def open_browser():
    """A browser to the end of the block; without one installed, the test is skipped."""
    driver = shutil.which("chromedriver")
    if not driver:
        pytest.skip("no chromedriver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                break
        opened = Browser(int(found[1]))
        yield opened
        with contextlib.suppress(OSError):
            opened.ask("DELETE", "")
    finally:
        process.kill()
        process.wait()
