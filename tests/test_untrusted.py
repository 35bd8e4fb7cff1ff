"""What comes from strangers is data: no file runs code, no name leaves its folder, no text is taken as markup."""

import http.client
import io
import json
import os
import pickle
import shutil
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from lm.compare.runs import Reader, read_run
from lm.compare.server import Feed, make_server
from lm.config.options import DataConfig
from lm.config.resolve import from_yaml, parse
from lm.corpora.corpus import load_corpus
from lm.corpora.tokenizer import CharTokenizer
from lm.files import UserError
from lm.runs import export
from lm.runs.checkpoint import read_checkpoint
from lm.runs.folder import Run
from lm.runs.load import load
from tests.commands import compare, evaluate, generate, train
from tests.fake_runs import fake_run
from tests.harness import fuzz


class Canary:
    """Its pickle makes a file when it is loaded as code would be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def canary(tmp_path):
    """The path that must not come to be."""
    path = tmp_path / "canary"
    with pytest.raises(TypeError), io.BytesIO(pickle.dumps(Canary(path))) as file:
        len(pickle.load(file))  # it does sing
    path.rmdir()
    yield path
    assert not path.exists()


@pytest.fixture
def run(tmp_path) -> Path:
    return fuzz.make_run(tmp_path / "runs" / "good")


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert str(error.value).isprintable()
    return str(error.value)


def poisoned_zip(path: Path, target: Path, canary: Path) -> None:
    """A checkpoint as torch writes it, with another pickle inside."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            content = pickle.dumps(Canary(canary)) if item.filename.endswith("data.pkl") else old.read(item)
            new.writestr(item, content)


@pytest.mark.parametrize("kind", ["whole", "inside", "zip", "plain", "legacy"])
def test_no_checkpoint_runs_code(kind, run, canary, tmp_path, capsys):
    path = run / "checkpoints" / "best.ckpt"
    good = torch.load(path, weights_only=True)
    if kind == "whole":
        torch.save(Canary(canary), path)
    elif kind == "inside":
        torch.save(good | {"callbacks": Canary(canary)}, path)
    elif kind == "zip":
        poisoned_zip(path, tmp_path / "x", canary)
        shutil.move(tmp_path / "x", path)
    elif kind == "plain":
        path.write_bytes(pickle.dumps(Canary(canary)))
    else:
        torch.save(good | {"x": Canary(canary)}, path, _use_new_zipfile_serialization=False)
    assert "best.ckpt" in refused(read_checkpoint, path)
    refused(load, run)
    refused(export.export, run, tmp_path / "out")
    for command in (generate, evaluate):
        assert command([str(run)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_resuming_from_a_poisoned_checkpoint_runs_nothing(run, canary, capsys):
    for name in ("best", "last", "previous"):
        torch.save(Canary(canary), run / "checkpoints" / f"{name}.ckpt")
    assert train(["--resume", str(run), "--trainer.max_steps", "9"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("content", [pickle.dumps(b"x"), b"not safetensors", b"\x80\x02."])
def test_no_export_runs_code(content, run, canary, tmp_path):
    export.export(run, tmp_path / "out")
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(pickle.dumps(Canary(canary)) if content[:1] == b"\x80" else content)
    assert "model.safetensors" in refused(load, tmp_path / "out")


def test_no_state_runs_code(run, canary, tmp_path, capsys):
    state = tmp_path / "state"
    assert generate([str(run), "--prompt", "a", "--samples", "0", "--save_state", str(state)]) == 0
    poisons = [pickle.dumps(Canary(canary)), b"", b"x" * 100, state.read_bytes()[:50]]
    buffer = io.BytesIO()
    torch.save(Canary(canary), buffer)
    for poison in [*poisons, buffer.getvalue()]:
        state.write_bytes(poison)
        capsys.readouterr()
        assert generate([str(run), "--load_state", str(state)]) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("kind", ["objects", "pickle", "zip", "shape", "type", "range"])
def test_no_cached_ids_run_code_or_leave_the_vocabulary(kind, canary, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "t.txt").write_text("abc" * 100)
    config = DataConfig(corpus=str(tmp_path / "t.txt"), context=8)
    expected = load_corpus(config).ids.tolist()
    (ids,) = (tmp_path / "cache").rglob("*.npy")
    with ids.open("wb") as file:
        if kind == "objects":
            np.save(file, np.array([Canary(canary)] * 300, dtype=object), allow_pickle=True)
        elif kind == "pickle":
            pickle.dump(Canary(canary), file)
        elif kind == "zip":
            np.savez(file, ids=np.array([Canary(canary)], dtype=object))
        elif kind == "shape":
            np.save(file, np.zeros((10, 30), np.uint16))
        elif kind == "type":
            np.save(file, np.zeros(300, np.float64))
        else:
            np.save(file, np.full(300, 60_000, np.uint16))
    assert load_corpus(config).ids.tolist() == expected


@pytest.mark.parametrize("content", ['{"py/object": "os.system"}', "!!python/object/apply:os.mkdir ['{canary}']"])
def test_no_tokenizer_or_configuration_runs_code(content, run, canary):
    text = content.replace("{canary}", str(canary))
    for name, read in (
        ("tokenizer.json", CharTokenizer.load),
        ("config.yaml", lambda path: from_yaml(path.read_text())),
    ):
        (run / name).write_text(text)
        refused(read, run / name)
    refused(parse, ["--config", str(run / "config.yaml")])
    assert read_run(run).config == {} or "!!" not in text
    (run / "config.yaml").write_bytes(pickle.dumps(Canary(canary)))
    refused(Run(run).config)


@pytest.mark.parametrize(
    "name", ["../x", "../../x", "/tmp/x", "a/b", ".", "..", ".hidden", "a\0b", "a\nb", "-x", "", " "]
)
def test_names_of_runs_stay_in_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in (lambda: parse([f"--name={name}"]), lambda: from_yaml(f"name: {json.dumps(name)}\n")):
        with pytest.raises(UserError):
            source()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../secret", "a\0b", "a\nb", "~root/x", "hf:x"])
def test_names_of_corpora_are_paths_or_refused(name, tmp_path, monkeypatch):
    """What they lead to is read, never written; the cache's own names are digests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refused(load_corpus, DataConfig(corpus=name))
    assert list(tmp_path.iterdir()) == []


def test_a_link_for_a_temporary_file_or_a_lock_is_not_followed(run, tmp_path):
    """A stranger's folder may hold links with the names that files have while they are written."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / ".config.yaml.part").symlink_to(precious)
    Run(run).write("config.yaml", "seed: 1\n")
    assert precious.read_text() == "mine" and (run / "config.yaml").read_text() == "seed: 1\n"
    (run / ".lock").symlink_to(precious)
    assert ".lock" in refused(Run(run).lock)
    assert precious.read_text() == "mine"


HOSTILE = "<script>alert(1)</script>\x1b[2J\x1b]0;owned\x07\u202e"


@pytest.fixture
def hostile(tmp_path) -> Path:
    """Run folders in which every text is hostile."""
    folder = tmp_path / "runs"
    path = fake_run(folder, "<script>x\x1b[2J", text=HOSTILE, status=HOSTILE, rows=20, data={"corpus": HOSTILE})
    summary = json.loads((path / "summary.json").read_text()) | {"mixer": HOSTILE, "device": HOSTILE, HOSTILE: HOSTILE}
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "environment.json").write_text(json.dumps({"processor": HOSTILE}))
    (path / "tokenizer.json").write_text(HOSTILE)
    lines = (path / "metrics.csv").read_text().splitlines()
    (path / "metrics.csv").write_text(
        "\n".join([lines[0] + "," + HOSTILE, *(line + ",1" for line in lines[1:])]) + "\n"
    )
    other = fake_run(folder, "other", rows=20, data={"corpus": HOSTILE + "2"})
    (other / "config.yaml").write_text((other / "config.yaml").read_text() + f"{json.dumps(HOSTILE)}: 1\n")
    (folder / "empty\x1b[2J").mkdir()
    return folder


def test_nothing_of_a_run_reaches_the_terminal_as_a_command(hostile, capsys):
    assert compare([f"{hostile}/*", "--text"]) == 0
    told = capsys.readouterr()
    for text in (told.out, told.err):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert compare([str(hostile / "empty\x1b[2J")]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_nothing_of_a_run_is_markup_in_the_page_or_a_column_in_the_files(hostile, capsys, tmp_path):
    assert compare([f"{hostile}/*", "--html", f"{tmp_path}/a.html", "--json", f"{tmp_path}/a.json"]) == 0
    page = (tmp_path / "a.html").read_text()
    assert "<script>alert" not in page and "<script>x" not in page
    data = page.partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data and json.loads(data)["runs"]
    assert "\x1b" not in page.partition(data)[2] and "\x1b" not in (tmp_path / "a.json").read_text()


@pytest.fixture
def served(hostile):
    server = make_server(Feed(Reader([str(hostile)]), "val/loss", None), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, method: str, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, path, headers={"Host": f"127.0.0.1:{server.server_port}"} | headers)
    answer = connection.getresponse()
    result = answer.status, dict(answer.getheaders()), answer.read().decode()
    connection.close()
    return result


def test_the_server_is_on_this_machine_only_and_answers_its_own_name_only(served):
    assert served.server_address[0] == "127.0.0.1"
    for host in ("evil.example", f"evil.example:{served.server_port}", "127.0.0.1", "localhost:1", "", "[::1]"):
        for path in ("/", "/data"):
            assert ask(served, "GET", path, Host=host)[0] == 403


def test_the_server_has_no_files(served, hostile):
    name = hostile.name
    for path in (
        "/config.yaml",
        f"/{name}/other/config.yaml",
        "/../other/config.yaml",
        "/..%2fother",
        "//etc/passwd",
        "/data/..",
    ):
        assert ask(served, "GET", path)[0] == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(served, method, "/data")[0] == 501


def test_the_servers_data_is_no_page(served, capfd):
    status, headers, text = ask(served, "GET", "/data")
    assert status == 200 and headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Frame-Options"] == "DENY"
    assert "\x1b" not in text and "\u202e" not in text and json.loads(text)["runs"]
    session = json.loads(text)["revision"].partition("-")[0]
    for since in (f"{session}-{'9' * 5000}", "%00", "<script>", "-1"):
        assert ask(served, "GET", f"/data?since={since}")[0] in (200, 204)
    assert "<script>" not in ask(served, "GET", "/")[2].partition("</title>")[2].partition("</main>")[0]
    assert capfd.readouterr().err == ""


def test_the_fuzzer_finds_nothing_in_a_few_folders(tmp_path):
    count, outcomes, bugs = fuzz.fuzz(60, 7, tmp_path, most=60)
    assert bugs == [] and count > 5 and set(outcomes) == {"success", "refused"}
