"""The page as a file."""

import numpy as np
import pytest

from lm.analysis.inspect.page import SCRIPTS, pack
from tests.analysis.inspect.conftest import HOSTILE
from tests.commands import ROOT, inspect


def test_hostile_text_cannot_close_its_element(runs, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert (
        inspect(
            ["mingru", "--runs", str(runs), "--text", f"</script>{HOSTILE}", "--html", str(page), "--chars", "1000"]
        )
        == 0
    )
    html = page.read_text()
    assert HOSTILE not in html and html.count("<script") == html.count("</script>") == 1 + 3 + len(SCRIPTS)
    assert "http" not in html.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_the_pretrained_model_fits(tmp_path, capsys):
    """2.5 MB, with the whole held-out text."""
    page = tmp_path / "page.html"
    assert inspect(["pretrained", "--html", str(page), "--chars", "1000"]) == 0
    assert page.stat().st_size + 1.05 * 110_536 < 2_500_000


@pytest.mark.parametrize("kind", ["f4", "i4", "i2"])
def test_arrays(kind):
    import base64

    values = np.array([[0, 1], [-128, 127]])
    assert np.frombuffer(base64.b64decode(pack(values.T, kind)), f"<{kind}").tolist() == [0, -128, 1, 127]


def test_every_script_is_in_the_page():
    assert {path.stem for path in (ROOT / "lm/analysis/inspect").glob("*.js")} == set(SCRIPTS)
