"""Storages that refuse, in one line each."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from lm.analysis.search import storage
from lm.files import UserError
from tests.training.conftest import no_permission

MEMORY = ("sqlite:///", "sqlite:///:memory:")


def refusal(url: str) -> str:
    with pytest.raises(UserError) as refused, storage.open_storage(url):
        pass
    assert "secret" not in str(refused.value)
    return str(refused.value)


def test_nobody_listens(unused_port):
    message = refusal(f"postgresql://me:secret@127.0.0.1:{unused_port}/db")
    assert message.startswith(f"--storage postgresql://me@127.0.0.1:{unused_port}/db: ") and "refused" in message


def test_a_port_is_a_number():
    assert refusal("postgresql://me:secret@host:port/db").startswith("--storage postgresql://me@host:port/db: ")


def test_tables_of_another_version(tmp_path):
    url = f"sqlite:///{tmp_path / 'x'}"
    with storage.open_storage(url) as found, found.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99'")
    assert "is no longer compatible with the table schema" in refusal(url)


@pytest.mark.parametrize("url", ["mysql://me:secret@host/db", "study.sqlite", "postgres//me:secret@host", *MEMORY])
def test_other_databases(url):
    assert refusal(url).endswith("expected postgresql://USER@HOST/DATABASE or sqlite:///FILE")


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "study.sqlite"
    path.write_text("no database " * 100)
    assert refusal(f"sqlite:///{path}") == f"--storage sqlite:///{path}: file is not a database"
    assert "unable to open database file" in refusal(f"sqlite:///{tmp_path}")
    assert refusal(f"sqlite:///{path}/study.sqlite").startswith(f"cannot write {path}: ")


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = tmp_path / "runs"
    folder.mkdir()
    with no_permission(folder):
        for place in ("study.sqlite", "deeper/study.sqlite"):
            assert re.search("cannot write |unable to open database file", refusal(f"sqlite:///{folder / place}"))
    assert not any(folder.iterdir())


@pytest.mark.parametrize(("url", "package"), [("sqlite:///x", "optuna"), ("postgresql://h/x", "psycopg")])
def test_a_missing_package_is_one_line_with_the_remedy(url, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert refusal(url) == f"--search needs the package {package}: pip install 'char-lm[search]'"


def test_workers_that_start_at_the_same_moment_make_one_storage(tmp_path):
    url = f"sqlite:///{tmp_path / 'new' / 'study.sqlite'}"

    def studies(number: int) -> list:
        with storage.open_storage(url) as found:
            return found.get_all_studies()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(studies, range(4))) == [[]] * 4


def test_what_is_new_and_what_is_hidden(tmp_path):
    assert storage.default_url("runs", "x") == "sqlite:///runs/x.sqlite"
    assert storage.is_new_file(f"sqlite:///{tmp_path}/x") and not storage.is_new_file(f"sqlite:///{tmp_path}")
    assert storage.hide_password("postgresql://u:p@ss@h/d?host=/s") == "postgresql://u@h/d?host=/s"
    assert storage.hide_password("postgresql:///d") == "postgresql:///d"
