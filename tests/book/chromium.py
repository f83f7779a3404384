"""A headless Chromium that tests drive by its debugging protocol, over a pipe: no port, no further package."""

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 60.0
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, "Tab": 9}


class Page:
    """An open page: what it loaded and complained of, and the hands of a reader."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = os.fdopen(requests, "wb"), os.fdopen(answers, "rb")
        self._number, self._rest, self._session = 0, b"", {}
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """Close the pipe, with which the browser ends."""
        with contextlib.suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()

    def call(self, method: str, **params: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result; what else is told is kept in `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params, **self._session}
        self._requests.write(json.dumps(message).encode() + b"\0")
        self._requests.flush()
        while (told := self._read()).get("id") != self._number:
            self.events.append(told)
        assert "error" not in told, told
        return told["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._answers], [], [], PATIENCE)[0], f"the browser said nothing for {PATIENCE} s"
            more = os.read(self._answers.fileno(), 1 << 20)
            assert more, "the browser ended"
            self._rest += more
        told, _, self._rest = self._rest.partition(b"\0")
        return json.loads(told)

    def open(self, address: str) -> None:
        """Open an address and wait for its scripts."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._read())

    def run(self, script: str) -> Any:
        """Return the value of a script, when its promise is kept."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def wait(self, condition: str) -> None:
        """Wait until a script is true, at most ten seconds."""
        for _ in range(200):
            if self.run(f"Boolean({condition})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not within ten seconds: {condition}")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key that has a name."""
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                text = {"text": "\r"} if (key, kind) == ("Enter", "keyDown") else {}  # the others write nothing
                codes = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
                self.call("Input.dispatchKeyEvent", type=kind, **codes, **text)

    def write(self, text: str) -> None:
        """Write into what has the focus."""
        self.call("Input.insertText", text=text)

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the mouse to a point of the window, and click there if wanted."""
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left" if click else "none", clickCount=1)

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        self.point(*self.middle(selector), click=True)

    def middle(self, selector: str) -> tuple[float, float]:
        """Return the middle of an element, brought into the window."""
        find = f"const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        box = "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
        return tuple(self.run(f"(() => {{ {find} {box} }})()"))

    def complaints(self) -> list[str]:
        """Return errors of scripts and of the console."""
        found = []
        for event in self.events:
            method, params = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
                found.append(str(params["args"]))
            elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(params["entry"]["text"])
        return found

    def outside(self) -> list[str]:
        """Return the addresses it asked for that are neither files nor in the page."""
        asked = [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method", "").endswith(".requestWillBeSent")
        ]
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]


@contextlib.contextmanager
def opened(path: Path, folder: Path, *, fragment: str = "") -> Iterator[Page]:
    """Open a file in a browser without a network; it keeps its profile in `folder`."""
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--window-size=1300,1000"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder}"]
    command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", CHROMIUM, *options]
    with subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL) as browser:
        os.close(theirs_in)
        os.close(theirs_out)
        page = Page(ours_out, ours_in)
        try:
            page.open(path.as_uri() + fragment)
            yield page
        finally:
            page.close()
            browser.terminate()
