"""Where texts come from: names, paths, folders, globs, tables, the Hub; and what cannot be read."""

import gzip
import http.server
import json
import lzma
import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from lm.config.options import DataConfig
from lm.corpora import sources
from lm.corpora.sources import find_files, read_pieces, read_text, read_texts
from lm.files import UserError
from tests.commands import ROOT
from tests.corpora.conftest import load, text_of


def test_file_folder_and_glob(tmp_path):
    folder = tmp_path / "texts" / "deep"
    folder.mkdir(parents=True)
    (folder.parent / "b.txt").write_text("second " * 30, encoding="utf-8")
    (folder.parent / "a.txt").write_text("first " * 30 + "\n", encoding="utf-8")
    (folder / "c.txt").write_text("third", encoding="utf-8")
    (folder / ".hidden").write_bytes(b"\xff")
    first, second = "first " * 30 + "\n", "second " * 30
    assert text_of(load(folder.parent / "a.txt")) == first
    assert text_of(load(folder.parent)) == first + second + "\nthird"
    assert text_of(load(folder.parent / "*.txt")) == first + second


def test_line_ends_stay_and_a_byte_order_mark_goes(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r" * 30)
    assert text_of(load(tmp_path / "t.txt")) == "one\r\ntwo\r" * 30


def test_compressed_text(tmp_path):
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(b"pressed " * 30))
    assert text_of(load(tmp_path / "t.txt.xz")) == "pressed " * 30


def test_a_text_in_pieces_is_the_text(tmp_path):
    text = "\ufeffaé\U0001f600\r\n" * 100
    (tmp_path / "t.txt").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "t.txt.xz").write_bytes(lzma.compress(text.encode()))
    for name in ("t.txt", "t.txt.xz"):
        for size in (1, 2, 3, 100, 10_000):
            assert "".join(read_pieces(tmp_path / name, size)) == text[1:]


@pytest.mark.parametrize("ending", ["gz", "xz", "zst"])
@pytest.mark.parametrize("vocabulary", ["characters", "bytes"])
def test_compressed_files_without_their_end_are_refused(tmp_path, ending, vocabulary):
    """zstandard's own reader takes such a file for whole."""
    zst = pytest.importorskip("zstandard").compress if ending == "zst" else None
    packed = {"gz": gzip.compress, "xz": lzma.compress, "zst": zst}[ending](os.urandom(40_000).hex().encode())
    (tmp_path / f"t.{ending}").write_bytes(packed[:-20])
    with pytest.raises(UserError, match=f"t.{ending}: Compressed file ended before the end-of-stream marker"):
        load(tmp_path / f"t.{ending}", vocabulary=vocabulary)
    (tmp_path / f"u.{ending}").write_bytes(packed * 2)  # one after the other is allowed, in all three formats
    assert len(load(tmp_path / f"u.{ending}", vocabulary=vocabulary).ids) == 160_000


@pytest.mark.parametrize("content", [b"good, then \xff", b"cut \xe2\x82"])
def test_pieces_of_what_is_not_text_are_refused(tmp_path, content):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"t\.txt: not UTF-8 text"):
        list(read_pieces(tmp_path / "t.txt", 4))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_are_read_through_datasets(tmp_path, ending, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()
    rows = {"line": ["to be or not to be, " * 8, "that is the question\n"], "number": [1, 2]}
    path = tmp_path / f"t.{ending}"
    table = datasets.Dataset.from_dict(rows)
    {"jsonl": table.to_json, "csv": table.to_csv, "parquet": table.to_parquet}[ending](str(path))
    assert text_of(load(path, column="line")) == "\n".join(rows["line"])
    with pytest.raises(UserError, match=r"no column text; data\.column can be line, number"):
        load(path)
    with pytest.raises(UserError, match="holds int, not text"):
        load(path, column="number")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny_shakespear", "did you mean tiny_shakespeare"),
        ("/no/such/file.txt", "no such file or folder"),
        ("texts/missing.txt", "no such file or folder; embedded are tiny_shakespeare and shakespeare"),
        ("*.nothing", "no file there"),
        ("", "no such file or folder"),
    ],
)
def test_missing_corpora_are_refused(name, message):
    with pytest.raises(UserError, match=message):
        find_files(DataConfig(corpus=name))


def test_position_of_the_first_bad_byte_counts_from_the_start_of_the_file(tmp_path):
    (tmp_path / "t.txt").write_bytes("é".encode() * 10 + b"\xc3")
    with pytest.raises(UserError, match="position 20"):
        read_text(tmp_path / "t.txt")


@pytest.mark.parametrize("name", ["karpathy/tiny_shakespeare", "hf://datasets/a/b/c.txt"])
def test_other_names_are_looked_for_on_the_hub(name):
    assert find_files(DataConfig(corpus=name)) == []


LOAD_ALL = """
import sys
from lm.config.options import DataConfig
from lm.corpora import sources
from lm.corpora.corpus import load_corpus
from lm.files import UserError
for name in sys.argv[1:]:
    try:
        print(load_corpus(DataConfig(corpus=name, context=8)))
    except UserError as error:
        print(error)
"""


def load_in_a_process_of_its_own(tmp_path, names, **environment):
    """What loading corpora, one after another, prints; and the seconds that it took."""
    without = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = without | {"HF_HOME": str(tmp_path / "hub"), "no_proxy": ""} | environment
    start = time.monotonic()
    words = [sys.executable, "-c", LOAD_ALL, *map(str, names)]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines(), time.monotonic() - start


def test_without_a_network_and_with_damaged_tables_there_is_one_line_each(tmp_path):
    """No progress lines, no retries: the proxy refuses every connection, and HF_HUB_OFFLINE is not set here."""
    (tmp_path / "good.jsonl").write_text(json.dumps({"text": "to be or not " * 20}) + "\n")
    (tmp_path / "other.jsonl").write_text(json.dumps({"line": "to be or not " * 20}) + "\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    names = [tmp_path / "good.jsonl", tmp_path / "other.jsonl", tmp_path / "broken.parquet", "nobody/no-such-data-set"]
    closed = "http://127.0.0.1:9"
    lines, seconds = load_in_a_process_of_its_own(tmp_path, names, https_proxy=closed, HTTPS_PROXY=closed)
    assert lines[:2] == [
        "260 characters, 7 distinct",
        f"{names[1]}: no column text; data.column can be line",
    ]
    assert lines[2].startswith(f"{names[2]}: `datasets` cannot read it: ")
    assert lines[3].startswith("data.corpus nobody/no-such-data-set: no such file here, and the Hub gave none: ")
    assert len(lines) == 4 and seconds < 20  # of which importing `datasets` takes a few


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Knows no data set, and notes what it was asked for."""

    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.asked.append(self.path)
        self.send_response(200 if self.path == "/" else 404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


def test_the_hub_is_asked_after_a_local_table(tmp_path):
    (tmp_path / "good.jsonl").write_text(json.dumps({"text": "to be or not " * 20}) + "\n")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        names = [tmp_path / "good.jsonl", "nobody/no-such-data-set"]
        endpoint = f"http://127.0.0.1:{server.server_port}"
        lines, _ = load_in_a_process_of_its_own(tmp_path, names, HF_ENDPOINT=endpoint, no_proxy="127.0.0.1")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert lines[0] == "260 characters, 7 distinct" and "doesn't exist on the Hub" in lines[1]
    assert any("/datasets/nobody/no-such-data-set/" in path for path in FakeHub.asked)


@pytest.mark.parametrize(
    ("options", "asked", "text"),
    [
        ({}, {"path": "a/b", "split": None, "revision": None}, "one, \ntwo; \nthree."),
        ({"split": "test"}, {"path": "a/b", "split": "test", "revision": None}, "three."),
        ({"revision": "v2"}, {"path": "a/b", "split": None, "revision": "v2"}, "one, \ntwo; \nthree."),
        ({"column": "other"}, {"path": "a/b", "split": None, "revision": None}, "1\n2\n3"),
        (
            {"corpus": "hf://datasets/a/b/c.parquet"},
            {"path": "parquet", "split": None, "data_files": "hf://datasets/a/b/c.parquet"},
            "one, \ntwo; \nthree.",
        ),
        (
            {"corpus": "hf://datasets/a/b/c.md"},
            {"path": "text", "split": None, "data_files": "hf://datasets/a/b/c.md"},
            "one, \ntwo; \nthree.",
        ),
    ],
)
def test_options_of_a_hub_corpus(options, asked, text, monkeypatch):
    import datasets

    tables = {
        "train": datasets.Dataset.from_dict({"text": ["one, ", "two; "], "other": ["1", "2"]}),
        "test": datasets.Dataset.from_dict({"text": ["three."], "other": ["3"]}),
    }
    calls = []

    def load_dataset(path, split=None, **more):
        calls.append({"path": path, "split": split, **more})
        return tables[split] if split else datasets.DatasetDict(tables)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(sources, "hub_answers", lambda: True)
    monkeypatch.setattr(sources, "_is_large", lambda name, options: False)
    config = DataConfig(**({"corpus": "a/b"} | options))
    assert "".join(read_texts(config, [])) == text and calls == [asked]


@pytest.mark.parametrize(("download", "table", "streams"), [(None, None, False), (10, 80, False), (60, 60, True)])
def test_a_data_set_that_does_not_fit_the_disk_twice_is_streamed(download, table, streams, monkeypatch):
    import datasets

    asked = []

    def load_dataset(path, split=None, streaming=False, **more):
        asked.append(streaming)
        rows = datasets.Dataset.from_dict({"text": ["one, ", "two."]})
        return datasets.IterableDatasetDict({"train": rows.to_iterable_dataset()}) if streaming else rows

    about = SimpleNamespace(info=SimpleNamespace(download_size=download, dataset_size=table))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name, revision: about)
    monkeypatch.setattr(sources, "hub_answers", lambda: True)
    monkeypatch.setattr(sources.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    assert "".join(read_texts(DataConfig(corpus="a/b"), [])) == "one, \ntwo." and asked == [streams]
