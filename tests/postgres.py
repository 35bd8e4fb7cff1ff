"""A PostgreSQL server for tests: in a folder of its own, as a user without privileges, reached by a socket there."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER, PASSWORD = "searcher", "correct horse"
MISSING = "no PostgreSQL: apt-get install postgresql runs the tests of searches with it"


def programs() -> Path | None:
    """The folder of the newest server's programs, which Debian keeps off the PATH; None if there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4].split(".")[0]))
    first = shutil.which("initdb")
    return found[-1].parent if found else Path(first).resolve().parent if first else None


def version() -> str:
    """PostgreSQL and the number of its version."""
    binaries = programs()
    assert binaries, MISSING
    said = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return f"PostgreSQL {said.split()[2]}"


def url(folder: Path, password: str = PASSWORD) -> str:
    """Of the server whose socket is in the folder."""
    return f"postgresql://{USER}:{password.replace(' ', '%20')}@/postgres?host={folder}"


@contextmanager
def server() -> Iterator[str]:
    """Run a server meanwhile. Yields its URL."""
    binaries = programs()
    assert binaries, MISSING
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has at most 107 bytes
    user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()  # the server refuses the superuser
    (folder / "password").write_text(PASSWORD)
    for path in (folder, folder / "password"):
        os.chown(path, user, -1)
    process = None
    try:
        make = [binaries / "initdb", "-D", folder / "data", "-U", USER, "-A", "scram-sha-256", "--no-sync"]
        make += ["--no-locale", "-E", "UTF8", f"--pwfile={folder / 'password'}"]
        subprocess.run(make, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        serve = [binaries / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-F"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(serve, user=user, cwd=folder, stdout=log, stderr=log)
        for _ in range(600):
            if "ready to accept connections" in (folder / "log").read_text():
                break
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.05)
        yield url(folder)
    finally:
        if process:
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for the connections to end
            process.wait()
        shutil.rmtree(folder)
