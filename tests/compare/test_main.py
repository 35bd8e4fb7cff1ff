"""python -m lm.compare: what it reads, what it computes, what it refuses, what it serves."""

import base64
import csv
import http.client
import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.compare import table, terminal
from lm.compare.page import embed, encode, payload, render
from lm.compare.runs import MARKS, Reader, RunData, Sample, read_run
from lm.compare.server import Feed, make_server
from lm.runs.metrics import AXES, VALUES
from tests.commands import compare
from tests.fake_runs import csv_row, fake_run

HEAD = ",".join(AXES + VALUES) + "\n"
HOSTILE = "<img src=x onerror=alert(1)>&lt;"


def validations(folder: Path, name: str, losses: dict[int, float], **config: object) -> Path:
    """A run with these windowed losses by step; 100 characters a step, 2 steps a second."""
    path = fake_run(folder, name, rows=0, validations=0, **config)
    rows = [csv_row((step, step * 100, step / 2, step * 1e9), {"val/loss": loss}) for step, loss in losses.items()]
    (path / "metrics.csv").write_text(HEAD + "".join(row + "\n" for row in rows))
    return path


def compare_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict:
    assert compare([*argv, "--json", "-"]) == 0
    return json.loads(capsys.readouterr().out)


def test_time_to_target_is_the_first_validation_at_or_below_it(tmp_path, capsys):
    validations(tmp_path, "fast", {100: 2.0, 200: 1.5, 300: 1.4})
    validations(tmp_path, "slow", {100: 3.0, 200: 2.5, 300: 2.0, 500: 1.5}, model={"width": 64})
    found = compare_json(capsys, str(tmp_path))
    assert found["target"] == 1.5  # the worst run's best
    fast, slow = found["groups"]
    assert fast["to_target"]["step"] == {"mean": 200, "spread": None, "times_faster": 2.5}
    assert slow["to_target"]["step"]["times_faster"] == 1
    assert found["runs"][1]["to_target"] == {"step": 500, "chars": 50_000, "train_seconds": 250, "flops": 5e11}
    later = compare_json(capsys, str(tmp_path), "--target", "1.45")
    assert later["runs"][1]["to_target"] is None
    assert later["groups"][1]["to_target"]["reached"] == 0


def test_seeds_are_grouped_with_mean_and_spread(tmp_path, capsys):
    validations(tmp_path, "gru-s1", {10: 1.6}, seed=1)
    validations(tmp_path, "gru-s2", {20: 1.8}, seed=2)
    validations(tmp_path, "wide", {10: 1.5}, seed=1, model={"width": 256})
    first, second = compare_json(capsys, str(tmp_path))["groups"]
    assert (first["label"], first["runs"]) == ("gru", ["gru-s1", "gru-s2"])
    assert first["val/loss"] == {"mean": pytest.approx(1.7), "spread": pytest.approx(0.2 / math.sqrt(2))}
    assert second["label"] == "wide"
    assert second["val/loss"]["spread"] is None


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (("mingru-s1", "mingru-s2"), "mingru"),
        (("mingru-128-1", "mingru-128-2"), "mingru-128"),
        (("mingru-20261101-120000", "mingru-20261101-130000"), "mingru"),
        (("gpt2-seed3", "gpt2-seed4"), "gpt2"),
        (("a", "b"), "mingru"),
    ],
)
def test_a_group_is_named_by_what_its_runs_share(tmp_path, names, label):
    for seed, name in enumerate(names):
        fake_run(tmp_path, name, seed=seed, rows=0)
    assert [item.label for item in table.group(Reader([str(tmp_path)]).read())] == [label]


def test_terminal_shows_both_tables_the_answer_and_curves(tmp_path, capsys):
    for mixer in ("mingru", "attention"):
        for seed in (1, 2):
            fake_run(tmp_path, f"{mixer}-s{seed}", mixer, seed)
    assert compare([str(tmp_path / "*"), "--text", "--x", "train_seconds"]) == 0
    out = capsys.readouterr().out
    assert "mingru x2" in out and "±" in out
    assert "times fewer steps than attention" in out
    assert "train_seconds" in out and "o attention x2" in out
    assert max(map(len, out.splitlines())) < 150


def test_a_row_being_written_is_left_for_later(tmp_path):
    path = fake_run(tmp_path, "a", rows=20)
    whole = read_run(path)
    with (path / "metrics.csv").open("a") as file:
        file.write("210,860160,3")
    torn = read_run(path)
    assert torn.columns["step"] == whole.columns["step"]
    assert torn.problems == []


def test_damaged_rows_are_left_out_and_counted(tmp_path):
    path = fake_run(tmp_path, "a", rows=20, validations=0)
    lines = (path / "metrics.csv").read_text().splitlines()
    lines[5:5] = ["\0\0\0", "what,is,this", ",".join(["x"] * len(AXES + VALUES)), "," * (len(AXES + VALUES) - 1)]
    (path / "metrics.csv").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert run.columns["step"] == [10.0 * i for i in range(1, 21)]
    assert run.problems == ["3 damaged rows of metrics.csv left out"]


def test_losses_that_are_not_numbers_are_reported_and_never_best(tmp_path, capsys):
    path = validations(tmp_path, "a", {10: 2.0, 20: math.nan, 30: math.inf, 40: -math.inf})
    assert compare([str(path), "--text", "--html", str(tmp_path / "a.html"), "--png", str(tmp_path / "a.png")]) == 0
    told = capsys.readouterr()
    assert "val/loss is nan at step 20" in told.err
    assert "2.0000" in told.out


def test_a_diverged_run_does_not_set_the_target(tmp_path, capsys):
    validations(tmp_path, "good", {10: 2.0, 20: 1.5})
    validations(tmp_path, "bad", {10: 4.0}, model={"width": 64}, status="diverged")
    assert compare_json(capsys, str(tmp_path))["target"] == 1.5


def test_a_run_without_validation_is_shown(tmp_path, capsys):
    fake_run(tmp_path, "a", validations=0, status="running")
    assert compare([str(tmp_path), "--text", "--html", str(tmp_path / "a.html"), "--png", str(tmp_path / "a.png")]) == 0
    assert "no validation yet" in capsys.readouterr().out


@pytest.mark.parametrize("missing", ["config.yaml", "summary.json", "metrics.csv", "samples.jsonl"])
def test_a_missing_file_costs_only_what_was_in_it(tmp_path, capsys, missing):
    (fake_run(tmp_path, "a") / missing).unlink()
    fake_run(tmp_path, "b", "attention")
    assert compare([str(tmp_path), "--text", "--html", str(tmp_path / "a.html")]) == 0
    assert capsys.readouterr().out.count("\na ") >= 1


def test_without_metrics_the_summary_has_the_best_loss(tmp_path, capsys):
    (fake_run(tmp_path, "a") / "metrics.csv").unlink()
    run = compare_json(capsys, str(tmp_path))["runs"][0]
    assert run["val/loss"] > 1 and run["best_step"] is None


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({"data": {"corpus": "bible"}}, "not comparable, the corpora differ: data.corpus is tiny_shakespeare, bible"),
        (
            {"data": {"context": 64}},
            "windowed losses are not comparable (compare the streaming ones): data.context is 128, 64",
        ),
    ],
)
def test_runs_that_are_not_comparable_get_a_warning(tmp_path, capsys, change, warning):
    fake_run(tmp_path, "a")
    fake_run(tmp_path, "b", **change)
    assert compare([str(tmp_path)]) == 0
    assert warning in capsys.readouterr().err


def test_other_alphabets_and_machines_get_a_warning(tmp_path, capsys):
    for name in "ab":
        path = fake_run(tmp_path, name)
        (path / "tokenizer.json").write_text(f'"{name}"')
        (path / "environment.json").write_text(json.dumps({"processor": f"processor {name}"}))
    compare([str(tmp_path)])
    told = capsys.readouterr().err
    assert "their alphabets do" in told
    assert "different machines (cpu processor a, cpu processor b)" in told


def test_folders_without_a_run_are_named(tmp_path, capsys):
    fake_run(tmp_path, "a")
    (tmp_path / "empty").mkdir()
    assert compare([str(tmp_path / "*")]) == 0
    assert f"no run in {tmp_path}/empty" in capsys.readouterr().err


def test_two_hundred_runs(tmp_path, capsys):
    for i in range(200):
        fake_run(tmp_path, f"run-{i}", seed=i, rows=30, model={"width": 2 + 2 * (i // 2)})
    assert (
        compare([str(tmp_path), "--text", *(f"--{x}={tmp_path / 'out'}.{x}" for x in ("html", "png", "json", "csv"))])
        == 0
    )
    assert len(json.loads((tmp_path / "out.json").read_text())["groups"]) == 100
    assert "(66 more)" in capsys.readouterr().out


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    for folder in ("x", "y"):
        fake_run(tmp_path / folder, "a", rows=5)
    assert [run.name for run in Reader([str(tmp_path / "*")]).read()] == ["x/a", "y/a"]


def test_a_run_matched_twice_is_read_once(tmp_path):
    path = fake_run(tmp_path, "a", rows=5)
    assert len(Reader([str(tmp_path), str(path), str(tmp_path / "a*")]).read()) == 1


def test_only_changed_folders_are_read_again(tmp_path):
    for name in "ab":
        fake_run(tmp_path, name, rows=5)
    reader = Reader([str(tmp_path)])
    first = reader.read()
    with (tmp_path / "b" / "metrics.csv").open("a") as file:
        file.write(csv_row((60, 1, 1, 1), {"val/loss": 1.0}) + "\n")
    second = reader.read()
    assert second[0] is first[0]
    assert second[1].columns["step"][-1] == 60


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=200),
            st.sampled_from([b"nan,1,1\n", HEAD.encode(), b"1," * 11 + b"2\n", b"{}\n", b"[1e999]\n"]),
        ),
        max_size=8,
    )
)
def test_nothing_in_a_folder_can_break_the_comparison(tmp_path_factory, pieces):
    path = tmp_path_factory.mktemp("run")
    for name in (*MARKS, "samples.jsonl", "environment.json"):
        head = HEAD.encode() if name == "metrics.csv" else b""
        (path / name).write_bytes(head + b"".join(pieces))
    runs = [read_run(path)]
    groups = table.group(runs)
    target = table.default_target(runs, "val/loss")
    everything = table.as_json(runs, groups, "val/loss", target, [])
    json.dumps(everything, allow_nan=False)
    embed(payload(groups, "val/loss", target, []) | {"runs": [encode(run, 1) for run in runs]})
    lines = [*terminal.results(groups), *terminal.curves(groups, "train/loss", "flops")]
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    "config",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nc: {d: [*b, *b]}\n",
        "model: {mixer: [a, {b: c}]}\n",
        "[" * 2000,
        "- 1\n",
        "1: {2: 3}\n",
    ],
)
def test_strange_configurations(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    assert all(isinstance(x, str) and len(x) < 2000 for item in read_run(tmp_path).config.items() for x in item)


def test_a_pipe_in_a_run_folder_is_not_waited_for(tmp_path):
    path = fake_run(tmp_path, "a", rows=5)
    (path / "samples.jsonl").unlink()
    os.mkfifo(path / "samples.jsonl")
    assert read_run(path).samples == []


def test_names_cannot_reach_the_terminal_or_the_spreadsheet(tmp_path, capsys):
    fake_run(tmp_path, "\x1b[2J=1+1\n", rows=20)
    fake_run(tmp_path, "=cmd()", rows=20, model={"width": 64})
    assert compare([str(tmp_path)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert compare([str(tmp_path), "--csv", "-"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert rows[1]["name"] == "'=cmd()"
    assert float(rows[1]["val/loss"]) > 1


def test_the_page_holds_nothing_of_a_run_as_markup(tmp_path, capsys):
    name = "<script>alert(1)"
    fake_run(tmp_path, name, text=f"</script>{HOSTILE}<!--", data={"corpus": HOSTILE})
    fake_run(tmp_path, "b", mixer=HOSTILE)
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    assert HOSTILE not in page and name not in page
    data = page.partition('<script id="data" type="application/json">')[2].partition("</script>")[0]
    assert "<" not in data
    assert json.loads(data)["runs"][0]["samples"][0][1].endswith(f"</script>{HOSTILE}<!--")


def test_the_page_asks_the_network_for_nothing(tmp_path):
    page = render(payload([], "val/loss", None, []) | {"runs": [], "order": []})
    head = page.partition("<style>")[0]
    assert "default-src 'none'" in head and "connect-src 'none'" in head and "unsafe-eval" not in head
    assert "<script src" not in page and '<link rel="stylesheet' not in page


def test_long_runs_and_long_samples_are_thinned_for_the_page(tmp_path):
    columns = {name: [float(i) for i in range(10_000)] for name in AXES + VALUES}
    run = RunData(tmp_path, "a", columns=columns, samples=[Sample(step, "x" * 4000) for step in range(500)])
    whole, thinned = encode(run, 1), encode(run, 100)
    assert unpack(whole["train"]["step"]) == columns["step"]
    steps, losses = unpack(thinned["train"]["step"]), unpack(thinned["train"]["train/loss"])
    assert len(steps) <= 1500 and steps[-1] == 9999
    assert losses[0] == sum(range(7)) / 7 and steps[0] == 6
    assert len(whole["samples"]) == 500 and len(thinned["samples"]) <= 10
    assert [thinned["samples"][i][0] for i in (0, -1)] == [0, 499]


def unpack(text: str) -> list[float]:
    return list(memoryview(base64.b64decode(text)).cast("f"))


def test_picture(tmp_path):
    for name in ("$x_{", "_hidden", "plain"):
        fake_run(tmp_path, name, rows=20, model={"width": 2 * len(name)})
    assert compare([str(tmp_path), "--png", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "no run folder nowhere; give run folders"),
        (["{folder}/empty"], "no run in {folder}/empty; make one with: python train.py"),
        (["{folder}", "--target", "abc"], "target: expected a number, not abc"),
        (["{folder}", "--target", "-1"], "--target must be a number above 0, not -1.0"),
        (["{folder}", "--metric", "loss"], "--metric: expected val/loss or val/loss_streaming, not loss"),
        (["{folder}", "--x", "time"], "--x: expected step or chars or train_seconds or flops, not time"),
        (["{folder}", "--port", "99999"], "--port must be between 0 and 65535, not 99999"),
        (["{folder}", "--htm", "a"], "unknown option --htm; did you mean --html?"),
        (["{folder}", "--html", "{folder}/no/a.html"], "cannot write {folder}/no/a.html: No such file or directory"),
        (["{folder}", "--png", "{folder}/no/a.png"], "cannot write {folder}/no/a.png: No such file or directory"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(tmp_path, capsys, argv, message):
    fake_run(tmp_path, "a", rows=20)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        compare([word.format(folder=tmp_path) for word in argv])
    assert stopped.value.code == 2
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert len(told) == 1
    assert message.format(folder=tmp_path) in told[0]


def test_no_torch_and_quick(tmp_path):
    for i in range(20):
        fake_run(tmp_path, f"run-{i}", seed=i, rows=5000, validations=20)
    script = (
        "import sys; from lm.compare.__main__ import main; compare(sys.argv[1:]); "
        "assert not {'torch', 'pandas', 'matplotlib', 'plotly'} & set(sys.modules)"
    )
    # 0.7 s on a quiet machine; the bound leaves room for a crowded one
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=20, stdout=subprocess.DEVNULL)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A server on a folder with two runs: the folder and the port."""
    for name in "ab":
        fake_run(tmp_path, name, rows=20, model={"width": 2 * ord(name)})
    server = make_server(Feed(Reader([str(tmp_path)]), describe), 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield tmp_path, server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


def describe(runs: list[RunData]) -> dict:
    return payload(table.group(runs), "val/loss", None, [])


def get(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    status, text = answer.status, answer.read().decode()
    connection.close()
    return status, text


def test_server_answers_its_paths_to_this_machine_only(served):
    _, port = served
    assert get(port, "/")[1].startswith("<!doctype html>")
    assert get(port, "/", f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1.evil.example:{port}"):
        assert get(port, "/", host)[0] == 403
    for path in ("/etc/passwd", "/../a/config.yaml", "/a/config.yaml", "/data/"):
        assert get(port, path)[0] == 404


def test_server_sends_only_what_changed(served):
    folder, port = served
    everything = json.loads(get(port, "/data")[1])
    assert len(everything["runs"]) == len(everything["order"]) == 2
    assert get(port, f"/data?since={everything['revision']}") == (204, "")
    with (folder / "b" / "metrics.csv").open("a") as file:
        file.write(csv_row((300, 1, 1, 1), {"val/loss": 1.0}) + "\n")
    news = json.loads(get(port, f"/data?since={everything['revision']}")[1])
    assert [run["name"] for run in news["runs"]] == ["b"]
    assert len(json.loads(get(port, "/data?since=another-1")[1])["runs"]) == 2
    fake_run(folder, "c", rows=5)
    news = json.loads(get(port, f"/data?since={news['revision']}")[1])
    assert [run["name"] for run in news["runs"]] == ["c"]
    assert len(news["order"]) == 3


def test_server_waits_for_the_first_run(tmp_path):
    feed = Feed(Reader([str(tmp_path / "later")]), describe)
    first = feed.since("")
    assert first is not None and first["runs"] == []
    fake_run(tmp_path / "later", "a", rows=5)
    news = feed.since(first["revision"])
    assert news is not None and [run["name"] for run in news["runs"]] == ["a"]


def test_a_taken_port_is_named(served, capsys):
    folder, port = served
    with pytest.raises(SystemExit) as stopped:
        compare([str(folder), "--serve", "--port", str(port)])
    assert stopped.value.code == 2
    assert f"cannot serve on port {port}" in capsys.readouterr().err
