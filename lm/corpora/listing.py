"""`char-lm data`: what is in the cache of encoded corpora, and how to empty it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lm.corpora import cache
from lm.files import UserError, cache_folder, read_text, writing
from lm.report.format import align

HEADER = ("text", "characters", "distinct", "MB", "last used")
SHOWN = 30
USAGE = "[--clear]"


@dataclass
class Options:
    """List the encoded texts, and the predictions of teachers, that are kept for the next run."""

    clear: bool = False
    """remove all of them; they are made again when they are needed"""


def run(options: Options) -> int:
    """Print the list, or clear the cache. Returns the exit code."""
    files = sorted(cache_folder().glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    size = sum(path.stat().st_size for path in files)
    if options.clear:
        for path in files:
            with writing(path):
                path.unlink(missing_ok=True)
                path.with_suffix(".json").unlink(missing_ok=True)
        print(f"removed {len(files)} files, {size / 1e6:,.1f} MB, from {cache_folder()}")
        return 0
    print(f"{cache_folder()}: {size / 1e6:,.1f} MB; beyond {cache.LARGEST / 1e6:,.0f} MB the oldest are removed")
    if files:
        print("\n" + "\n".join(align([HEADER, *map(_row, files[:SHOWN])], left=1)))
    if len(files) > SHOWN:
        print(f"and {len(files) - SHOWN:,} more, used earlier")
    return 0


def _row(path: Path) -> tuple[str, ...]:
    """The cells of a file; a damaged one has its name alone."""
    about = {}
    with suppress(UserError, ValueError):
        about = json.loads(read_text(path.with_suffix(".json")))
    known = about if isinstance(about, dict) else {}
    numbers = [f"{known[key]:,}" if isinstance(known.get(key), int) else "-" for key in ("length", "distinct")]
    stat = path.stat()
    used = f"{datetime.fromtimestamp(stat.st_mtime):%Y-%m-%d %H:%M}"
    return str(known.get("source", path.name)), *numbers, f"{stat.st_size / 1e6:,.1f}", used
