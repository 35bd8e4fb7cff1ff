"""What commands print, inserted into documents."""

import pytest

from lm.files import UserError
from lm.report.document import halves, insert
from tests.commands import document


def test_what_a_command_prints_goes_into_a_document(tmp_path, capfd):
    path = tmp_path / "a.md"
    path.write_text("before\n<!-- lm bench parameters help: begin -->\n<!-- lm bench parameters help: end -->\nafter\n")
    assert document([str(path), *"python -m lm bench parameters --help".split()]) == 0
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("after\n")
    assert "$ python -m lm bench parameters --help\nusage:" in text and "usage:" in capfd.readouterr().out
    for words in ([], [str(path)], [str(path), "true"], [str(tmp_path / "b.md"), "true"]):
        assert document(words) == 2 and path.read_text() == text
    for twice in ("<!-- true: begin -->\n<!-- true: end -->\nsee <!-- true: end --> above\ntail\n", text * 2):
        path.write_text(twice)
        assert document([str(path), "true"]) == 2 and path.read_text() == twice
    path.write_text("<!-- false: begin -->\nold\n<!-- false: end -->\n")
    assert document([str(path), "false"]) == 1 and "old" in path.read_text()


def test_the_mark_of_a_command_of_ours_is_without_its_name(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("<!-- bench parameters help: begin -->\n<!-- bench parameters help: end -->\n")
    assert document([str(path), *"char-lm bench parameters --help".split()]) == 0
    assert "$ char-lm bench parameters --help\nusage: char-lm bench" in path.read_text()


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("fence", ["```", ""])
def test_line_ends_stay_as_they_are(tmp_path, end, fence):
    path = tmp_path / "a.md"
    lines = ["before", "<!-- a: begin -->", "old", "<!-- a: end -->", "after", ""]
    path.write_bytes(end.join(lines).encode())
    insert(str(path), "a", "one\ntwo\n", fence)
    inner = ["```text", "one", "two", "```"] if fence else ["", "one", "two", ""]
    assert path.read_bytes() == end.join([*lines[:2], *inner, *lines[3:]]).encode()


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- a: begin -->\n",
        "<!-- a: end -->\n<!-- a: begin -->\n",
        "<!-- a: begin --> old\n<!-- a: end -->\n",
        "<!-- a: begin -->\n<!-- a: end -->\n<!-- a: end -->\n",
        "<!-- a: begin -->\n<!-- a: begin -->\n<!-- a: end -->\n",
    ],
)
def test_a_document_needs_one_pair_of_marks(tmp_path, text):
    path = tmp_path / "a.md"
    path.write_text(text)
    with pytest.raises(UserError, match="needs one line <!-- a: begin --> and one <!-- a: end --> after it"):
        halves(str(path), "a")


def test_a_place_can_name_another_mark(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("<!-- a: begin -->\n<!-- a: end -->\n<!-- b: begin -->\n<!-- b: end -->\n")
    insert(f"{path}#b", "a", "text", fence="")
    assert path.read_text() == "<!-- a: begin -->\n<!-- a: end -->\n<!-- b: begin -->\n\ntext\n\n<!-- b: end -->\n"


def test_a_text_with_the_mark_itself_is_refused(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("<!-- a: begin -->\n<!-- a: end -->\n")
    with pytest.raises(UserError, match="has the mark"):
        insert(str(path), "a", "<!-- a: end -->")
