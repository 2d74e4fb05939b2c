"""Drives headless Chromium through its DevTools protocol, over two pipes."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess

# None if there is none.
PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# Only a browser that hangs takes this long.
_PATIENCE = 120


@contextlib.contextmanager
def started(profile):
    """Starts a browser, whose data are in the folder `profile`, and yields its page."""
    (there, out), (back, answer) = os.pipe(), os.pipe()
    options = ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", f"--user-data-dir={profile}"]
    # Chromium reads from 3 and writes to 4.
    command = ["bash", "-c", f'exec "$@" 3<&{there} 4>&{answer}', "bash", PROGRAM, *options, "about:blank"]
    with (
        open(out, "wb", buffering=0) as to,
        open(back, "rb", buffering=0) as come,
        subprocess.Popen(
            command, pass_fds=(there, answer), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as child,
    ):
        os.close(there)
        os.close(answer)
        try:
            yield Page(to, come)
        finally:
            child.terminate()


class Page:
    """The page of a browser.

    Attributes:
        events: what it reported since it was opened: errors, messages on the console, requests.
    """

    def __init__(self, to, come):
        self._to, self._come, self._buffer = to, come, b""
        self._numbers, self._session, self.events = itertools.count(1), {}, []
        (page,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method, **params):
        """Calls a method of the protocol, and returns its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        self._to.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path):
        """Opens a page and waits until its scripts have run."""
        self.events.clear()
        loader = self.call("Page.navigate", url=path.as_uri())["loaderId"]
        while not any(_is_loaded(event, loader) for event in self.events):
            self.events.append(self._next())

    def run(self, script):
        """Runs JavaScript, waits for its promise if it is one, and returns the value."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def _next(self):
        while b"\0" not in self._buffer:
            assert select.select([self._come], [], [], _PATIENCE)[0], "chromium does not answer"
            received = self._come.read(1 << 16)
            assert received, "chromium ended"
            self._buffer += received
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)


def _is_loaded(event, loader):
    params = event["params"]
    return event["method"] == "Page.lifecycleEvent" and params["name"] == "load" and params["loaderId"] == loader
