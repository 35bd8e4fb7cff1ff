"""What every self-contained page is filled with."""

import base64
import hashlib
import json

import pytest

from lm.report.html import fill, texts

TEMPLATE = '<!--HEAD--><!--STYLE--><script id="data"><!--DATA--></script><!--SCRIPTS-->'


def test_only_the_page_s_own_scripts_may_run():
    page = fill(TEMPLATE, "b {}", {}, ["one()", "two()"])
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in (b"one()", b"two()")]
    assert f"script-src 'sha256-{hashes[0]}' 'sha256-{hashes[1]}'; " in page
    assert "default-src 'none'; " in page and "connect-src 'none'; " in page and "wasm" not in page
    assert "<style>b {}</style>" in page and page.endswith("<script>one()</script>\n<script>two()</script>")


def test_a_page_that_runs_webassembly_or_asks_its_server():
    page = fill(TEMPLATE, "", {}, ["one()"], connect="'self'", wasm=True)
    assert " 'wasm-unsafe-eval'; " in page and "connect-src 'self'; " in page and "'unsafe-eval'" not in page


def test_data_is_neither_markup_nor_a_mark():
    data = {"</script><img src=x>": ["<!--STYLE-->", "&amp;", "\u2028"]}
    page = fill(TEMPLATE, "", data, [])
    inside = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(inside) == data and not set("<>&") & set(inside)


def test_numbers_that_json_does_not_have_are_refused():
    with pytest.raises(ValueError, match="JSON compliant"):
        fill(TEMPLATE, "", float("nan"), [])


def test_texts():
    first, second = texts("lm.report/page.css", "lm.sampling.web/engine.js")
    assert first.startswith("/*") and "class Engine" in second
