"""Self-contained HTML pages: one file that loads nothing from the network.

What a page shows comes from run folders and is not trusted: it is embedded as JSON in which nothing can close the
element, the scripts insert it as text, and a content security policy allows no other scripts.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<link rel="icon" href="data:,">"""
"""What each page begins with, up to its title."""


def texts(*files: str) -> list[str]:
    """The contents of files of packages, each named "package/file"."""
    places = [file.split("/") for file in files]
    return [(resources.files(package) / name).read_text(encoding="utf-8") for package, name in places]


def fill(
    template: str, style: str, data: Any, scripts: Sequence[str], connect: str = "'none'", wasm: bool = False
) -> str:
    """The page of a template, whose marks <!--HEAD-->, <!--STYLE-->, <!--DATA--> and <!--SCRIPTS--> are replaced.

    Args:
        data: for the scripts, as JSON.
        connect: addresses that the scripts may ask, as in a policy's connect-src.
        wasm: whether they may compile WebAssembly.
    """
    parts = {
        "HEAD": HEAD.format(policy=_policy(scripts, connect, wasm)),
        "STYLE": f"<style>{style}</style>",
        "DATA": embed(data),
        "SCRIPTS": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    page, *rest = template.split("<!--")  # one pass: inserted text is not searched again
    for part in rest:
        mark, _, tail = part.partition("-->")
        page += parts[mark.strip()] + tail
    return page


def _policy(scripts: Sequence[str], connect: str, wasm: bool) -> str:
    allowed = [f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts]
    allowed += ["'wasm-unsafe-eval'"] if wasm else []
    return (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; img-src data: blob:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    )


def embed(data: Any) -> str:
    """JSON that is safe inside a <script> element."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
