"""`char-lm bench page`."""

import pytest

from lm.bench import page
from lm.files import UserError
from lm.sampling.packed import Packed
from tests.browser import needs_browser

pytestmark = needs_browser


@pytest.fixture
def other(tmp_path):
    """A page that is ready at once."""
    path = tmp_path / "other.html"
    path.write_text("<script>performance.mark('ready')</script>")
    return path


def test_what_is_measured_and_that_nothing_is_timed_that_differs(bench, other, monkeypatch):
    right = Packed.trace

    def wrong(self, *arguments):
        trace = right(self, *arguments)
        return trace._replace(logits=1.01 * trace.logits) if self.weights == "int8" else trace

    monkeypatch.setattr(Packed, "trace", wrong)
    result, out = bench("page", "--weights", "bfloat16", "int8", "--pages", str(other))
    model, differs, last = result["results"]
    assert model["difference"] < 1e-4 and 2e6 < model["bytes"] < 2.5e6
    assert len(model["read"]) == len(model["written"]) == len(model["ready"]) == 2
    assert min(model["read"] + model["written"]) > 100 and min(model["ready"]) > 0
    assert differs["skipped"].startswith("differs: a log-probability is off by") and "read" not in differs
    assert last["name"] == "other.html" and last["bytes"] == other.stat().st_size and "read" not in last
    assert "Chromium" in out and differs["skipped"] in out


class Nothing:
    """A browser in which nothing happens."""

    def get(self, url):
        pass

    def execute_script(self, script):
        return []


def test_pages_that_are_never_ready_or_do_not_exist(other, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "LONGEST", 0)
    with pytest.raises(UserError, match=r"other.html is not ready after 0 seconds; is it a page with a model\?$"):
        page.start(Nothing(), other, 1)
    with pytest.raises(UserError, match=r"^--pages: there is no file .*none.html$"):
        page.start(Nothing(), tmp_path / "none.html", 1)
