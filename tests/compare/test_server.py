"""`--serve`: what the server answers, and to whom."""

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lm.compare.runs import Reader
from lm.compare.server import Feed, make_server
from tests.commands import compare
from tests.fake_runs import append_row, fake_run


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A server on a folder with two runs: the folder and the port."""
    for name in "ab":
        fake_run(tmp_path, name, rows=20, model={"width": 2 * ord(name)})
    server = make_server(Feed(Reader([str(tmp_path)]), "val/loss", None), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_server_answers_its_paths_to_this_machine_only(served):
    _, port = served
    assert get(port, "/")[1].startswith("<!doctype html>")
    assert get(port, "/", f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
        assert get(port, "/", host)[0] == 403
    for path in ("/etc/passwd", "/../a/config.yaml", "/a/config.yaml", "/data/"):
        assert get(port, path)[0] == 404


def test_server_sends_only_what_changed(served):
    folder, port = served
    everything = json.loads(get(port, "/data")[1])
    assert len(everything["runs"]) == len(everything["order"]) == 2
    assert get(port, f"/data?since={everything['revision']}") == (204, "")
    append_row(folder / "b", 300, **{"val/loss": 1.0})
    news = json.loads(get(port, f"/data?since={everything['revision']}")[1])
    assert [run["name"] for run in news["runs"]] == ["b"]
    assert len(json.loads(get(port, "/data?since=another-1")[1])["runs"]) == 2
    fake_run(folder, "c", rows=5)
    news = json.loads(get(port, f"/data?since={news['revision']}")[1])
    assert [run["name"] for run in news["runs"]] == ["c"]
    assert len(news["order"]) == 3


def test_server_waits_for_the_first_run(tmp_path):
    feed = Feed(Reader([str(tmp_path / "later")]), "val/loss", None)
    first = feed.since("")
    assert first is not None and first["runs"] == []
    fake_run(tmp_path / "later", "a", rows=5)
    news = feed.since(first["revision"])
    assert news is not None and [run["name"] for run in news["runs"]] == ["a"]


def test_a_taken_port_is_named(served, capsys):
    folder, port = served
    assert compare([str(folder), "--serve", "--port", str(port)]) == 2
    assert f"cannot serve on port {port}" in capsys.readouterr().err
