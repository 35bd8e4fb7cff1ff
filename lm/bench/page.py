"""A model in a page, in Chromium: equal to Python's, how fast, how large, how soon ready.

Reading is timed on a text that the model has written, writing at temperature 0.8, both in the one thread of the page,
without drawing, in seconds for which that thread had a core. A page is ready when its controls work; that time runs
from navigation, and includes what other processes take.
"""

import base64
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lm.bench import measure, options
from lm.bench.browser import chromium
from lm.bench.measure import RefusedError, Row
from lm.files import UserError
from lm.runs.export import read_chosen
from lm.runs.load import Trained, make_model
from lm.sampling.packed import Packed
from lm.sampling.text import generate
from lm.sampling.web.page import render

TOLERANCE = 1e-4
"""Largest difference of a log-probability that counts as equal."""
HEADER = ("weights", "page, MB", "log-probability off by", "read, char/s", "written, char/s", "ready, ms")
OPEN = "window.engine = await Engine.create(JSON.parse(document.getElementById('data').textContent).block)"
READ = "engine.read(engine.encode(a))"
WRITE = "[...writeText(engine, engine.start(), { seed: 0, temperature: 0.8, chars: a.length })]"
LOGITS = f"""const bytes = new Uint8Array({READ}.logits.buffer);
let text = '';
for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
return btoa(text);"""
READY = "return performance.getEntriesByType('mark').map((mark) => mark.startTime)"
"""The page of `char-lm export` sets one mark when it is ready, that of `char-lm inspect` when it has drawn."""
LONGEST = 60
"""Seconds until a page must be ready."""
WARM_UP = 2
"""Calls that are not timed: the browser compiles meanwhile."""


def run(arguments: options.Page) -> Row:
    """One row for each precision, and for each page of --pages its size and the time until it is ready."""
    about = measure.heading("A model in a page", options.OnDevice(device="cpu"), " ".join(arguments.weights))
    saved = read_chosen(arguments.run, "best")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, chromium() as driver:
        about["browser"] = driver.capabilities["browserVersion"]
        print(f"Chromium {about['browser']}")
        for weights in arguments.weights:
            path = Path(folder, f"{weights}.html")
            path.write_text(render(saved, weights), encoding="utf-8")
            rows.append(start(driver, path, arguments.repeat) | {"name": weights})
            try:
                rows[-1] |= engine(driver, saved, weights, arguments)
            except RefusedError as error:
                rows[-1]["skipped"] = str(error)
        rows += [start(driver, Path(page), arguments.repeat) for page in arguments.pages]
    measure.print_table(HEADER, rows, table_row)
    return {"conditions": about, "results": rows}


def start(driver: Any, page: Path, repeat: int) -> Row:
    """The size of a page in bytes, and seconds from each of some navigations until it is ready.

    Raises:
        UserError: there is no such page, or it is not ready in time.
    """
    if not page.is_file():
        raise UserError(f"--pages: there is no file {page}")
    times = []
    for _ in range(repeat + 1):  # the first starts the browser's process of the page
        driver.get(page.absolute().as_uri())
        end = time.monotonic() + LONGEST
        while not (mark := driver.execute_script(READY)):
            if time.monotonic() > end:
                raise UserError(f"{page} is not ready after {LONGEST} seconds; is it a page with a model?")
            time.sleep(0.01)
        times.append(mark[0] / 1000)
    return {"name": page.name, "bytes": page.stat().st_size, "ready": times[1:]}


def engine(driver: Any, saved: Trained, weights: str, arguments: options.Page) -> Row:
    """The difference from Python, and characters per second in the page that is open. Raises RefusedError."""
    fast = Packed(make_model(saved), weights)
    text = "".join(generate(fast, saved.tokenizer, chars=arguments.chars))
    logits = fast.trace(torch.from_numpy(saved.tokenizer.encode(text).astype(np.int64))).logits
    call(driver, OPEN)
    got = torch.from_numpy(np.frombuffer(base64.b64decode(call(driver, LOGITS, text)), np.float32).copy())
    off = (got.view_as(logits).log_softmax(-1) - logits.log_softmax(-1)).abs().max().item()
    if not off <= TOLERANCE:
        raise RefusedError(f"differs: a log-probability is off by {off:.1e}")
    times = {name: seconds(driver, work, text, arguments.repeat) for name, work in (("read", READ), ("written", WRITE))}
    return {"difference": off} | {name: [len(text) / time for time in several] for name, several in times.items()}


def seconds(driver: Any, script: str, text: str, repeat: int) -> list[float]:
    """Seconds of the page's thread in each of some calls."""
    driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
    ends = []
    for _ in range(WARM_UP + repeat + 1):
        metrics = driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        ends.append(next(each["value"] for each in metrics if each["name"] == "ThreadTime"))
        call(driver, script, text)
    return [end - begin for begin, end in itertools.pairwise(ends[WARM_UP:])]


def call(driver: Any, script: str, *arguments: Any) -> Any:
    """The result of the body of an async function of a in the page."""
    driver.set_script_timeout(600)
    body = f"const done = arguments[arguments.length - 1]; (async (a) => {{ {script} }})(...arguments).then(done)"
    return driver.execute_async_script(body, *arguments)


def table_row(row: Row) -> list[str]:
    """Size, difference, and medians with their spread."""
    speeds = [measure.whole(row[name]) if name in row else "" for name in ("read", "written")]
    off = f"{row['difference']:.1e}" if "difference" in row else ""
    return [f"{row['bytes'] / 1e6:.2f}", off, *speeds, measure.whole([1000 * seconds for seconds in row["ready"]])]
