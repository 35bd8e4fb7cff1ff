"""`char-lm data` lists the cache and clears it."""

import os

from lm.corpora import listing
from tests.commands import data
from tests.corpora.conftest import load


def test_texts_are_listed_by_their_last_use_and_removed(tmp_path, cache, capsys, monkeypatch):
    for number, name in enumerate(("first", "second")):
        (tmp_path / f"{name}.txt").write_text("ab" * 500 * (number + 1) + "c")
        load(tmp_path / f"{name}.txt")
    for file in cache.glob("*.npy"):
        second = file.stat().st_size > 3000
        os.utime(file, (1000 * second, 1000 * second))
    (cache / "damaged.npy").write_bytes(b"x" * 10**6)
    os.utime(cache / "damaged.npy", (2000, 2000))
    assert data([]) == 0
    head, _, titles, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith(f"{cache}: 1.0 MB; beyond ") and titles.split()[:2] == ["text", "characters"]
    assert [row.split()[:-2] for row in rows] == [
        ["damaged.npy", "-", "-", "1.0"],
        [str(tmp_path / "second.txt"), "2,001", "3", "0.0"],
        [str(tmp_path / "first.txt"), "1,001", "3", "0.0"],
    ]
    monkeypatch.setattr(listing, "SHOWN", 1)
    assert data([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "and 2 more, used earlier"
    assert data(["--clear"]) == 0
    assert capsys.readouterr().out == f"removed 3 files, 1.0 MB, from {cache}\n" and not list(cache.iterdir())
    assert data([]) == 0 and capsys.readouterr().out.startswith(f"{cache}: 0.0 MB")
