"""Files: limits of reading, atomic writing, checks of outputs, locks, and what errors say."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lm import files
from lm.files import UserError, acquire_lock, alias, atomic_open, atomic_write, check_output, is_abandoned, read_bytes
from tests.commands import ROOT


def test_reading_a_folder_is_refused_and_leaks_no_descriptor(tmp_path):
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        with pytest.raises(UserError, match=r"this is a folder; a file is expected"):
            read_bytes(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_pipes_and_devices_are_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UserError, match=r"not a plain file"):
            read_bytes(path)


def test_the_limit_of_size_is_the_largest_size(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bytes(tmp_path / "a", 5) == read_bytes(tmp_path / "a") == b"12345"
    with pytest.raises(UserError, match=r"5 bytes; such a file has at most 4"):
        read_bytes(tmp_path / "a", 4)


@pytest.mark.parametrize(("name", "reason"), [("none", "No such file"), ("a\0b", "null"), ("a" * 300, "too long")])
def test_what_cannot_be_read_is_named(name, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        read_bytes(tmp_path / name)


@pytest.mark.parametrize(
    ("raw", "text"),
    [(b"", ""), (b"\xef\xbb\xbfa\r\nb\rc\n", "a\r\nb\rc\n"), ("a\ufeff\u4e2d".encode(), "a\ufeff\u4e2d")],
)
def test_text_is_kept_to_the_character_but_for_a_leading_mark(raw, text, tmp_path):
    (tmp_path / "a").write_bytes(raw)
    assert files.read_text(tmp_path / "a") == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("ab".encode("utf-16"), "x: this is UTF-16 text"),
        (b"a\xe9b", "x: not UTF-8 text (byte 0xe9 at position 1: invalid continuation byte)"),
        (b"ab\0", "x: not text (a NUL character at position 2)"),
    ],
)
def test_what_is_not_text_is_refused(raw, message):
    with pytest.raises(UserError) as refused:
        files.as_text(raw, Path("x"))
    assert str(refused.value).startswith(message)


def test_an_error_is_one_printable_line_of_bounded_length():
    assert str(UserError("a \n b\r\n\x1b[2J\u202e\ud800")) == "a b \ufffd[2J\ufffd\ufffd"
    long = str(UserError("x" * 1000))
    assert long == "x" * 400 + " ... " + "x" * 150 and str(UserError("x" * 600)) == "x" * 600


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": 1}, "a section"), ([1, 2], "a list of 2"), (10**18, "a number of more than 18 digits"),
        (-(10**18) + 1, str(-(10**18) + 1)), ("a" * 81, "a" * 80 + "..."), ("a" * 80, "a" * 80), (None, "None"),
    ],
)  # fmt: skip
def test_values_in_a_few_words(value, text):
    assert files.shorten(value) == text


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True),
        (RuntimeError("shapes do not fit"), False),
        (ValueError("allocate memory"), False),
    ],
)
def test_what_means_that_memory_is_short(error, expected):
    assert files.is_out_of_memory(error) is expected


def test_an_atomic_write_replaces_a_file_and_keeps_its_mode(tmp_path):
    path = tmp_path / "a"
    atomic_write(path, "one\n")
    path.chmod(0o640)
    atomic_write(path, b"two\xff")
    assert path.read_bytes() == b"two\xff" and path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_atomic_write_that_fails_changes_nothing(error, tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), atomic_open(path) as file:
        file.write(b"half")
        assert path.read_text() == "old"
        raise error
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a"]


def test_two_writers_of_one_file_at_once_do_not_mix(tmp_path):
    path = tmp_path / "a"
    with atomic_open(path) as slow:
        slow.write(b"slow, first half; ")
        slow.flush()
        with atomic_open(path) as quick:
            quick.write(b"quick")
        assert path.read_bytes() == b"quick"
        slow.write(b"second half")
    assert path.read_bytes() == b"slow, first half; second half"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_old_file_can_be_kept_under_another_name(tmp_path):
    path = tmp_path / "last"
    for text in (b"one", b"two", b"three"):
        with atomic_open(path, "previous") as file:
            file.write(text)
    assert path.read_bytes() == b"three" and (tmp_path / "previous").read_bytes() == b"two"
    assert len(list(tmp_path.iterdir())) == 2


def test_names_of_any_length_can_be_written(tmp_path):
    path = tmp_path / ("\U00010000" * 60)  # 240 bytes
    atomic_write(path, "x")
    assert path.read_text() == "x"


def test_a_device_is_written_to_and_not_replaced():
    atomic_write(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left on device"):
        atomic_write(Path("/dev/full"), "x")


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_is_a_link_or_a_copy(links, tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(1, "Operation not permitted")

    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):
        alias(tmp_path / "a", "b")
    assert (tmp_path / "b").read_text() == "new" and (tmp_path / "a").samefile(tmp_path / "b") == links
    assert len(list(tmp_path.iterdir())) == 2


def test_checking_an_output_changes_nothing(tmp_path):
    (tmp_path / "old").write_text("text")
    os.utime(tmp_path / "old", (1, 1))
    for path in ("old", "new"):
        check_output(str(tmp_path / path))
    for path in ("-", "/dev/null"):
        check_output(path)
    assert [file.name for file in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "text" and (tmp_path / "old").stat().st_mtime == 1


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "not the name of a file"),
        ("a\nb", "not the name of a file"),
        ("none/a", "No such file"),
        (".", "directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(path, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^cannot write .*{reason}"):
        check_output(path)


def test_a_lock_keeps_others_out_until_it_is_closed(tmp_path):
    path = tmp_path / ".lock"
    assert not is_abandoned(path)
    lock = acquire_lock(path)
    assert not is_abandoned(path)
    with pytest.raises(BlockingIOError, match=rf"^process {os.getpid()} of "):
        acquire_lock(path)
    lock.close()
    assert is_abandoned(path)
    acquire_lock(path).close()


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, pathlib, lm.files as f\n"
        "lock = f.acquire_lock(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    )
    words = [sys.executable, "-c", code, str(tmp_path / ".lock")]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(BlockingIOError, match=rf"^process {process.pid} of "):
            acquire_lock(tmp_path / ".lock")
        process.kill()
    assert is_abandoned(tmp_path / ".lock")


def test_only_old_leftovers_are_removed(tmp_path):
    for name, age in {".a.1-x.part": 700, ".b.1-x.part": 500, "a.npy": 700}.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    files.remove_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".b.1-x.part", "a.npy"]


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "char-lm"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/x")
    assert files.cache_folder() == Path("/home/x/.cache/char-lm")


WITHOUT = "import sys; sys.modules.update(fcntl=None, resource=None)\n"
"""Makes the two modules that Windows does not have impossible to import."""


def run_without(code: str, *words: str) -> str:
    """The output of a program in a process without fcntl and resource."""
    command = [sys.executable, "-c", WITHOUT + code, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout


def test_locks_without_fcntl_keep_nobody_out(tmp_path):
    code = (
        "import lm.files as f, pathlib; path = pathlib.Path(sys.argv[1])\n"
        "locks = [f.acquire_lock(path), f.acquire_lock(path)]; print(f.is_abandoned(path))"
    )
    assert run_without(code, str(tmp_path / ".lock")) == "False\n"


def test_commands_without_fcntl_and_resource(tmp_path):
    assert "usage: char-lm COMMAND" in run_without("from lm.cli import main; sys.exit(main(['--help']))")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("name: run\n")
    (run / "metrics.csv").write_text("step,chars,train_seconds,flops,train/loss,val/loss\n10,100,1,1,2.5,2.25\n")
    code = "from lm.cli import main; sys.exit(main(['compare', sys.argv[1], '--html', sys.argv[1] + '/a.html']))"
    assert "2.25" in run_without(code, str(run)) and (run / "a.html").stat().st_size > 1e6


def test_a_package_that_is_missing_is_named_with_the_remedy():
    with pytest.raises(UserError, match=r"^--x needs the package no_such_package: pip install no_such_package$"):
        files.import_optional("no_such_package.part", "--x")
    assert files.import_optional("json", "--x").loads("1") == 1
