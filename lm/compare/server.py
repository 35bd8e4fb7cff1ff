"""`--serve`: the page on this machine, following runs while they train.

Nothing runs between requests. A page asks every two seconds for what changed since the revision it has; the answer
is empty, or holds the changed runs only. Bound to 127.0.0.1, and deaf to other host names: a site that lets its name
point here cannot read the runs.
"""

import json
import secrets
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lm.compare.page import encode, render
from lm.compare.runs import Reader, RunData
from lm.files import UserError


class Feed:
    """The page's data, and what of it is new since a revision. Reads and encodes only the runs that changed.

    Args:
        reader: finds the runs; none there yet is fine.
        describe: makes the page's data but for its runs.
    """

    def __init__(self, reader: Reader, describe: Callable[[list[RunData]], dict[str, Any]]) -> None:
        self.reader, self.describe = reader, describe
        self._lock = threading.Lock()
        self._session = secrets.token_hex(4)
        self._revision = 0
        self._stamps: dict[str, Any] | None = None
        self._changed: dict[str, int] = {}
        self._encoded: dict[str, dict[str, Any]] = {}
        self._data: dict[str, Any] = {}

    def page(self) -> str:
        """The page as things stand."""
        return render(self._read(known=-1))

    def since(self, revision: str) -> dict[str, Any] | None:
        """The data with the runs that changed after a revision; None for nothing new, all for a revision not ours."""
        session, _, number = revision.partition("-")
        ours = session == self._session and number.isascii() and number.isdigit() and len(number) < 16
        known = int(number) if ours else -1
        data = self._read(known)
        return None if revision == data["revision"] else data

    def _read(self, known: int) -> dict[str, Any]:
        with self._lock:
            try:
                runs = self.reader.read()
            except UserError:  # the first run is not there yet
                runs = []
            stamps = {str(run.path): (run.name, self.reader.stamp(run)) for run in runs}
            if stamps != self._stamps:
                self._update(runs, stamps)
            news = [run for key, run in self._encoded.items() if self._changed[key] > known]
            return self._data | {"revision": f"{self._session}-{self._revision}", "runs": news}

    def _update(self, runs: list[RunData], stamps: dict[str, Any]) -> None:
        self._revision += 1
        before, known, encoded = self._stamps or {}, self._changed, self._encoded
        same = {key for key, stamp in stamps.items() if before.get(key) == stamp}
        self._changed = {key: known[key] if key in same else self._revision for key in stamps}
        self._encoded = {
            key: encoded[key] if key in same else encode(run, len(runs)) for key, run in zip(stamps, runs, strict=True)
        }
        self._stamps, self._data = stamps, self.describe(runs) | {"live": True, "order": list(stamps)}


def make_server(feed: Feed, port: int) -> ThreadingHTTPServer:
    """A server on 127.0.0.1, not yet started; port 0 takes a free one.

    Raises:
        UserError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "lm.compare", ""
        timeout = 30

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if self.headers.get("Host", "") not in hosts:
                self._answer(403, "text/plain", "this server answers on 127.0.0.1 and localhost only\n")
            elif url.path == "/":
                self._answer(200, "text/html", feed.page())
            elif url.path == "/data":
                news = feed.since(parse_qs(url.query).get("since", [""])[0])
                self._answer(204 if news is None else 200, "application/json", "" if news is None else json.dumps(news))
            else:
                self._answer(404, "text/plain", "not found\n")

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            if status != 204:
                self.send_header("Content-Type", f"{kind}; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
            for name, value in (
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
                ("X-Frame-Options", "DENY"),
                ("Referrer-Policy", "no-referrer"),
                ("Cross-Origin-Resource-Policy", "same-origin"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: a page asks every two seconds."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error.strerror}; choose another with --port") from None
    server.daemon_threads = True
    hosts = {f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost")}
    return server
