"""What commands print, inserted into documents."""

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
