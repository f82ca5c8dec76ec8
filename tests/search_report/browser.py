"""A headless Chromium without a network that opens pages and inspects them.

It is driven over a pipe, and records each page's errors and requests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # a sandbox needs privileges that containers and root do not give
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)
_LAUNCH: Final = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
"""The browser reads descriptor 3 and writes to 4; a shell cannot redirect descriptors above 9 to them."""
_TIMEOUT_S: Final = 120.0
_SETTLED: Final = """
new Promise(done => {
  const figures = () => [...document.querySelectorAll(".plot")];
  const fits = figure => figure.querySelector("svg.main-svg")?.clientWidth === figure.clientWidth;
  const drawn = () => requestAnimationFrame(() => requestAnimationFrame(done));
  const look = tries => tries && !figures().every(fits) ? setTimeout(look, 50, tries - 1) : drawn();
  requestAnimationFrame(() => look(200));
})
"""
"""A JavaScript promise, fulfilled when every figure is as wide as its element, or after ten seconds."""


def find_browser() -> str | None:
    """Returns the path of a Chromium on PATH; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@dataclass(kw_only=True)
class Page:
    """A page that was opened.

    Attributes:
        browser: browser that shows the page.
        session: id of the DevTools session of the page.
        problems: exceptions, console errors and warnings, and errors and warnings that the browser logged.
        requests: addresses that the page requested, except its own, `data:` and `blob:` addresses.
    """

    browser: Browser
    session: str
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def evaluate(self, expression: str) -> Any:
        """Returns the JSON value of a JavaScript expression."""
        answer = self.browser.call("Runtime.evaluate", session=self.session, expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def resize(self, width: int, height: int = 900) -> None:
        """Resizes the window, and waits until the figures have been resized too."""
        self.browser.call(
            "Emulation.setDeviceMetricsOverride", session=self.session, width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        self.evaluate(_SETTLED)

    def print_to(self, path: Path) -> None:
        """Writes the page as it would be printed, as PDF."""
        answer = self.browser.call("Page.printToPDF", session=self.session, printBackground=True, preferCSSPageSize=True)
        path.write_bytes(base64.b64decode(answer["data"]))


class Browser:
    """A running browser, which answers one call at a time."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(commands), str(answers), program, *_FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._last = 0
        self._pages: dict[str, Page] = {}
        self._loaded: set[str] = set()

    def open(self, address: str, *, width: int = 1300) -> Page:
        """Returns a page that is opened without a network, after it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self._pages[session] = Page(browser=self, session=session)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable", session=session)
        self.call("Network.emulateNetworkConditions", session=session, offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
        page.resize(width)
        page.requests.clear()
        self._loaded.discard(session)
        self.call("Page.navigate", session=session, url=address)
        deadline = time.monotonic() + _TIMEOUT_S
        while session not in self._loaded:
            self._handle(self._message(deadline))
        page.resize(width)
        page.requests.remove(address)
        return page

    def call(self, method: str, *, session: str | None = None, **params: object) -> dict[str, Any]:
        """Returns the result of a DevTools protocol command; events that arrive before it are recorded."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while True:
            answer = self._message(deadline)
            if answer.get("id") == self._last:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._handle(answer)

    def close(self) -> None:
        """Ends the browser and its child processes."""
        for descriptor in (self._write, self._read):
            os.close(descriptor)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"the browser did not answer within {_TIMEOUT_S:.0f} s")
            chunk = os.read(self._read, 1 << 16)
            if not chunk:
                raise RuntimeError(f"the browser ended with exit code {self._process.wait()}")
            self._buffer += chunk
        content, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(content)
        return message

    def _handle(self, message: dict[str, Any]) -> None:
        session, method, params = message.get("sessionId", ""), message.get("method"), message.get("params", {})
        page = self._pages.get(session)
        if page is None:
            return
        if method == "Page.loadEventFired":
            self._loaded.add(session)
        elif method == "Runtime.exceptionThrown":
            page.problems.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            page.problems.append(json.dumps([params["type"], params["args"]]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            page.problems.append(json.dumps(params["entry"]))
        elif method == "Network.requestWillBeSent" and not params["request"]["url"].startswith(("data:", "blob:")):
            page.requests.append(params["request"]["url"])


@contextlib.contextmanager
def running_browser(program: str, profile: Path) -> Iterator[Browser]:
    """Yields a running browser, and ends it after the block.

    Args:
        program: path of the browser, from `find_browser`.
        profile: empty folder for the browser's settings.
    """
    browser = Browser(program, profile)
    try:
        yield browser
    finally:
        browser.close()
