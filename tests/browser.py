"""A headless Chromium, driven over a pipe by the DevTools protocol: what a page logs, requests and looks like."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMEOUT_S = 60.0
LEFT = {
    "Inspected target navigated or closed",
    "Execution context was destroyed.",
    "Cannot find default execution context",
}
"""What the protocol answers to a question about a page that is no longer there."""
ON_3_AND_4 = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""
"""Starts the browser with its ends of the pipes on descriptors 3 and 4, where it speaks the protocol."""


def program() -> str | None:
    """Return the browser's program, None where none is installed."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Navigated(Exception):
    """The page was left for another one while it was asked something."""


@dataclass
class Browser:
    """One page of a browser. messages: what it logged, threw or was refused; requests: the addresses asked for."""

    process: subprocess.Popen[bytes]
    to_browser: int
    from_browser: int
    session: str = ""
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _buffer: bytes = b""

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result; what the page reports meanwhile is kept.

        Raises Navigated, RuntimeError.
        """
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next_message()
            if found.get("id") == number:
                if "error" in found:
                    known = Navigated if found["error"]["message"] in LEFT else RuntimeError
                    raise known(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self._keep(found)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, awaited where it is a promise."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return found["result"].get("value")

    def evaluate_as_page(self, expression: str) -> Any:
        """Return an expression's value, None where it throws; evaluation inside of it obeys the page's policy."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, allowUnsafeEvalBlockedByCSP=False
        )
        return None if "exceptionDetails" in found else found["result"].get("value")

    def open(self, page: Path) -> float:
        """Open a report and wait until every figure is drawn; return the seconds that took."""
        started = time.monotonic()
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait("document.documentElement?.dataset.ready === 'true'")
        return time.monotonic() - started

    def wait(self, condition: str) -> None:
        """Wait until a JavaScript condition holds, on this page or one that takes its place; raises TimeoutError."""
        end = time.monotonic() + TIMEOUT_S
        while not self._holds(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition}: {self.messages}")
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return bool(self.evaluate(condition))
        except Navigated:
            return False

    def view(self, width: int, height: int = 900, *, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window and the colours that the user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def pdf(self) -> bytes:
        """Print the page on A4."""
        found = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=True)
        return base64.b64decode(found["data"])

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.from_browser], [], [], TIMEOUT_S)
            read = os.read(self.from_browser, 1 << 20) if ready else b""
            if not read:
                raise RuntimeError("the browser says nothing more")
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _keep(self, event: dict[str, Any]) -> None:
        method, told = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(told["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(f"{told['type']}: {json.dumps(told['args'])[:500]}")
        elif method == "Log.entryAdded":
            self.messages.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif method == "Page.javascriptDialogOpening":
            self.messages.append(f"dialog: {told['message']}")
        elif method == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Start a browser with its profile in a folder, and end it."""
    found = program()
    assert found is not None
    (their_in, our_out), (our_in, their_out) = os.pipe(), os.pipe()
    command = [
        *(sys.executable, "-c", ON_3_AND_4, str(their_in), str(their_out)),
        *(found, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"),
        *("--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run", "--disable-background-networking"),
    ]
    process = subprocess.Popen(
        command, pass_fds=(their_in, their_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(their_in)
    os.close(their_out)
    browser = Browser(process, our_out, our_in)
    try:
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        browser.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            browser.call(f"{domain}.enable")
        yield browser
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(our_out)
        os.close(our_in)
