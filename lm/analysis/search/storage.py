"""Where a search keeps its trials: SQLite or PostgreSQL, through Optuna; its errors become one line."""

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.files import UserError, writing

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

HEARTBEAT, GRACE = 15, 90
"""Seconds between the signs of life of a trial, and after which a silent one is taken over by another worker."""
REMEDY = "pip install 'char-lm[search]'"
MADE_MEANWHILE = ("already exists", "duplicate key", "UNIQUE constraint")
"""What a database says if another worker makes the same tables at the same moment."""


def default_url(runs: str, study: str) -> str:
    """The SQLite file of a study beside its runs."""
    return f"sqlite:///{Path(runs) / f'{study}.sqlite'}"


def is_new_file(url: str) -> bool:
    """Whether this is a SQLite file that is not there yet."""
    return url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists()


def hide_password(url: str) -> str:
    """The URL for messages."""
    return re.sub(":(?!//).*@", "@", url)


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn errors of the database into a UserError that names the storage and the reason."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        raise UserError(f"--storage {hide_password(url)}: {getattr(cause, 'orig', None) or cause}") from None


@contextmanager
def open_storage(url: str) -> Iterator["RDBStorage"]:
    """Connect to the storage, and make its tables if it has none. The context closes the connections.

    Raises:
        UserError: a package is missing, the URL is wrong, or the database refuses.
    """
    if not re.match("postgresql://|sqlite:///(?!:memory:|$)", url):
        raise UserError(f"--storage {hide_password(url)}: expected postgresql://USER@HOST/DATABASE or sqlite:///FILE")
    try:
        import optuna

        if url.startswith("postgresql"):
            import psycopg  # noqa: F401
    except ImportError as error:
        raise UserError(f"--search needs the package {error.name}: {REMEDY}") from None
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # heartbeats, since 2020
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url.startswith("sqlite:///"):
        folder = Path(url.removeprefix("sqlite:///")).parent
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with storage_errors(url):
        storage = _connect(url)
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _connect(url: str, attempts: int = 20) -> "RDBStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy import event
    from sqlalchemy.exc import SQLAlchemyError

    is_file = url.startswith("sqlite:///")
    # heartbeats are compared as local times of the database: all sessions need the same time zone
    connect: dict[str, Any] = {"timeout": 60} if is_file else {"connect_timeout": 10, "options": "-c timezone=utc"}
    try:
        storage = RDBStorage(
            url.replace("postgresql://", "postgresql+psycopg://", 1),
            engine_kwargs={"connect_args": connect, "pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
        )
    except (SQLAlchemyError, AssertionError) as error:  # an assertion: there are tables, but no version yet
        made = isinstance(error, AssertionError) or any(words in str(error) for words in MADE_MEANWHILE)
        if not made or not attempts:
            raise
        time.sleep(0.1)
        return _connect(url, attempts - 1)
    except (RuntimeError, ValueError) as error:  # tables of another version of Optuna; a port that is no number
        raise UserError(f"--storage {hide_password(url)}: {error}") from None
    if is_file:
        event.listen(storage.engine, "begin", _begin_immediately)
    return storage


def _begin_immediately(connection: Any) -> None:
    """Lock the file before the first read: SQLite knows no SELECT ... FOR UPDATE, by which one worker gets a trial."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
