"""A headless Chromium that makes pictures of pages, driven over the DevTools protocol.

Chromium's own ``--screenshot`` waits until a page asks for nothing any more. The page of an activity that is not
finished asks the server again and again, so that there would never be a picture of one.
"""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from servers.build import ServerError
from servers.running import until

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # root has none; the pages are our own, on loopback
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--lang=en-US",
    "--remote-debugging-pipe",  # messages on the descriptors 3 and 4, each with a zero byte at its end
)


class Browser:
    """One running Chromium with one page. Made by `browser`; for one thread."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests = requests
        self._answers = answers
        self._received = b""
        self._count = 0
        self._session: dict[str, str] = {}
        page = self._call("Target.createTarget", url="about:blank")
        attached = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def screenshot(self, url: str, path: Path, *, shows: str, width: int = 1400, height: int = 800) -> None:
        """Write a PNG of the page at *url* to *path*, once it contains the text *shows*.

        *width* and *height* are pixels. Raises `AssertionError` with the page's text when *shows* does not appear.
        """
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=url)
        until(f"{url} shows {shows!r}", lambda: shows in self._text(), self._text)
        self._evaluate("document.fonts.ready.then(() => true)")
        picture = self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(picture["data"]))

    def _text(self) -> str:
        """What a reader sees, in one line."""
        return " ".join(str(self._evaluate("document.body ? document.body.innerText : ''")).split())

    def _evaluate(self, expression: str) -> object:
        answer = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value", "")

    def _call(self, method: str, **params: object) -> dict[str, Any]:
        """The result of a call; events that come before it are passed over."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params, **self._session}
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._count:
            pass
        if "error" in answer:
            raise ServerError(f"Chromium refused {method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            received = os.read(self._answers, 1 << 16)
            if not received:
                raise ServerError("Chromium has ended; start it by hand to see why, with --headless=new --no-sandbox")
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Run a Chromium for the length of a `with` block. Raises `ServerError` when there is none."""
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        raise ServerError("no Chromium was found on PATH; on Debian: apt-get update && apt-get install -y chromium")
    # It closes its files in its own time.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        names = [str(Path(folder, name)) for name in ("requests", "answers")]
        for name in names:
            os.mkfifo(name)
        with subprocess.Popen(
            ["sh", "-c", f'exec "$0" "$@" 3<"{names[0]}" 4>"{names[1]}"', path, *_OPTIONS, f"--user-data-dir={folder}"],
            env=os.environ | {"TZ": "UTC"},
            stderr=subprocess.DEVNULL,  # complains about a desktop that is not there
            start_new_session=True,
        ) as process:
            requests, answers = os.open(names[0], os.O_WRONLY), os.open(names[1], os.O_RDONLY)
            try:
                yield Browser(requests, answers)
            finally:
                os.killpg(process.pid, signal.SIGKILL)  # there is nothing to save
                os.close(requests)
                os.close(answers)
