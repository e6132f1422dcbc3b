"""Headless Chromium for tests: opens a file, tells what it did, takes pictures. Needs `chromium` and websocket-client.

The protocol is https://chromedevtools.github.io/devtools-protocol; only what the tests need of it.
"""

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import websocket
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 60.0  # for one answer, on a busy machine


def find() -> str | None:
    """The browser's program, or None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab, and every event it sent."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.number = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command; the events that come before its answer are kept."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                result: dict[str, Any] = message["result"]
                return result
            self.events.append(message)

    def wait_for(self, event: str) -> None:
        """Until the tab has sent this event."""
        while not any(message["method"] == event for message in self.events):
            self.events.append(json.loads(self.socket.recv()))

    def open(self, file: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=file.absolute().as_uri())
        self.wait_for("Page.loadEventFired")

    def script(self, expression: str) -> Any:
        """The value of an expression of JavaScript, promises awaited."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def scheme(self, name: str, media: str = "screen") -> None:
        """Prefer `light` or `dark`, on `screen` or in `print`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", media=media, features=features)

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def picture(self, whole: bool = False) -> Image.Image:
        """What the window shows, or the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")

    def printed(self) -> bytes:
        """The page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])

    def requests(self) -> list[str]:
        """Addresses that were asked for, apart from what the page holds itself."""
        sent = [m["params"]["request"]["url"] for m in self.events if m["method"] == "Network.requestWillBeSent"]
        return [address for address in sent if not address.startswith("data:")]

    def complaints(self) -> list[str]:
        """Errors and warnings of the console and the log, and exceptions."""
        found = []
        for message in self.events:
            method, parameters = message["method"], message["params"]
            if method == "Runtime.exceptionThrown":
                found.append(str(parameters["exceptionDetails"]))
            if method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
                found.append(str(parameters["args"]))
            if method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
                found.append(parameters["entry"]["text"])
        return found


@contextmanager
def tab(folder: Path) -> Iterator[Page]:
    """A new browser with one empty tab; its profile goes to `folder`."""
    program = find()
    assert program is not None
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    options += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    process = subprocess.Popen(
        [program, *options, "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        page = Page(_address(folder / "DevToolsActivePort", process))
        try:
            yield page
        finally:
            with suppress(OSError, websocket.WebSocketException):
                page.call("Browser.close")
            page.socket.close()
    finally:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(file: Path, process: subprocess.Popen) -> str:
    """The tab's web socket, once the browser has written its port."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with exit code {process.returncode}"
        if file.is_file() and (port := file.read_text().partition("\n")[0]):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=SECONDS) as answer:
                tabs = [found for found in json.load(answer) if found["type"] == "page"]
            if tabs:
                return str(tabs[0]["webSocketDebuggerUrl"])
        time.sleep(0.1)
    raise TimeoutError("the browser did not start")
