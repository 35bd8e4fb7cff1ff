"""`--serve`: the page on this machine, which follows runs while they train.

The page asks every two seconds for what changed since its revision; the answer is empty, or has the changed runs only.
The server is bound to 127.0.0.1 and refuses other host names, so that a web site whose name points here cannot read
the runs.
"""

import json
import secrets
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from lm.compare.page import encode, payload, render
from lm.compare.runs import Reader, RunData
from lm.files import UserError


class Feed:
    """The data of the page, and what is new since a revision. Reads and encodes only the runs that changed.

    Args:
        reader: finds the runs; there may be none yet.
        metric: the loss to compare.
        target: the loss to reach; None for the page's own choice.
    """

    def __init__(self, reader: Reader, metric: str, target: float | None) -> None:
        self.reader, self.metric, self.target = reader, metric, target
        self._lock = threading.Lock()
        self._session = secrets.token_hex(4)
        self._revision = 0
        self._runs: dict[str, tuple[Any, int, dict[str, Any]]] = {}
        """by path: name and stamp, the revision at which the run last changed, and its encoding"""
        self._data: dict[str, Any] = {}

    def page(self) -> str:
        """The page as things stand."""
        return render(self._read(known=-1))

    def since(self, revision: str) -> dict[str, Any] | None:
        """The data with the runs that changed after a revision.

        None if nothing is new; all runs if the revision is not one of this session.
        """
        session, _, number = revision.partition("-")
        ours = session == self._session and number.isascii() and number.isdigit() and len(number) < 16
        data = self._read(int(number) if ours else -1)
        return None if revision == data["revision"] else data

    def _read(self, known: int) -> dict[str, Any]:
        with self._lock:
            runs: list[RunData] = []
            with suppress(UserError):  # the first run is not there yet
                runs = self.reader.read()
            stamps = {str(run.path): (run.name, run.stamp) for run in runs}
            if not self._data or stamps != {path: stamp for path, (stamp, _, _) in self._runs.items()}:
                self._revision += 1
                self._runs = {path: self._encode(run, path, stamps) for run, path in zip(runs, stamps, strict=True)}
                self._data = payload(runs, self.metric, self.target, self.reader.skipped) | {"live": True}
            news = [run for _, changed, run in self._runs.values() if changed > known]
            return self._data | {"revision": f"{self._session}-{self._revision}", "runs": news}

    def _encode(self, run: RunData, path: str, stamps: dict[str, Any]) -> tuple[Any, int, dict[str, Any]]:
        old = self._runs.get(path)
        return old if old and old[0] == stamps[path] else (stamps[path], self._revision, encode(run, len(stamps)))


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
            """No log: a page asks every two seconds."""

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(f"cannot serve on port {port}: {error.strerror}; choose another with --port") from None
    server.daemon_threads = True
    hosts = {f"{name}:{server.server_port}" for name in ("127.0.0.1", "localhost")}
    return server
