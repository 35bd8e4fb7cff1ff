"""The page of `char-lm compare --html` in a real browser: each control is operated, and its effect checked."""

import base64
import csv
import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm.compare import table
from lm.compare.runs import Reader
from lm.compare.server import Feed, make_server
from lm.report.format import short
from lm.runs.metrics import AXES
from tests.browser import ActionChains, By, Keys, Page, chromium, needs_browser
from tests.commands import compare
from tests.fake_runs import csv_row, fake_run, run_of

pytestmark = needs_browser
HOSTILE = "z<img src=x onerror=window.hacked=1>"
TRACES = "return document.getElementById('curves').data.filter((t) => t.hoverinfo !== 'skip')"


class Comparison(Page):
    """The page of the comparison."""

    def choose(self, value: str) -> None:
        """Choose a loss to plot."""
        self.click(f"#y option[value='{value}']")

    def traces(self) -> list[dict[str, Any]]:
        """Lines of the large plot, without the bands."""
        return self.js(
            TRACES + ".map((t) => ({name: t.name, x: [...t.x], y: [...t.y], dash: t.line.dash, color: t.line.color}))"
        )

    def range(self) -> list[list[float]]:
        return self.js("const l = document.getElementById('curves').layout; return [l.xaxis.range, l.yaxis.range]")


@pytest.fixture(scope="module")
def browser() -> Iterator[Comparison]:
    with chromium() as driver:
        yield Comparison(driver)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two mixers with two seeds each, and one run alone with hostile text."""
    folder = tmp_path_factory.mktemp("runs")
    for mixer in ("attention", "mingru"):
        for seed in (1, 2):
            fake_run(folder, f"{mixer}-s{seed}", mixer, seed, rows=300)
    fake_run(
        folder,
        HOSTILE,
        "gru",
        rows=300,
        text=f"</script><script>window.hacked=1</script>{HOSTILE}",
        data={"column": HOSTILE},
    )
    path = folder.parent / "report.html"
    assert compare([str(folder), "--html", str(path), "--json", str(folder.parent / "report.json")]) == 0
    return path


@pytest.fixture
def page(browser: Comparison, report: Path) -> Iterator[Comparison]:
    """The page, fresh; fails the test if it asked the network for anything or complained."""
    browser.complaints()
    browser.open(report.as_uri())
    yield browser
    assert browser.complaints() == []


def test_x_axis(page):
    ends = {}
    for axis in ("step", "chars", "train_seconds", "flops"):
        page.click(f"input[value={axis}] + span")
        ends[axis] = page.traces()[0]["x"][-1]
    assert ends == pytest.approx(
        {"step": 3000, "chars": 3000 * 4096, "train_seconds": 855, "flops": 3000 * 4096 * 4.2e6}
    )


def test_curves_of_every_kind(page):
    first = {}
    for name in ("val/loss", "val/loss_streaming", "train/loss", "val/bpc", "val/perplexity"):
        page.choose(name)
        assert len(page.traces()) == 3
        first[name] = page.traces()[0]["y"][-1]
    assert first["val/loss_streaming"] == pytest.approx(first["val/loss"] - 0.02, abs=1e-3)
    assert first["val/bpc"] > first["val/loss"]
    page.choose("both")
    assert len(page.traces()) == 6


def test_log_axes(page):
    page.click("#logx")
    page.click("#logy")
    kinds = page.js("const l = document.getElementById('curves').layout; return [l.xaxis.type, l.yaxis.type]")
    assert kinds == ["log", "log"]
    assert page.range()[0][1] < 4  # powers of ten


def test_grouping_shows_a_mean_and_a_band_or_every_run(page):
    assert [trace["name"] for trace in page.traces()][:2] == ["attention \u00d72", "mingru \u00d72"]
    assert page.js("return document.getElementById('curves').data.filter((t) => t.fill === 'toself').length") == 2
    page.click("#grouped")
    assert len(page.traces()) == len(page.texts("#results tbody tr")) == 5
    one, two = page.traces()[:2]
    assert one["color"] == two["color"] and one["dash"] != two["dash"]


def test_lines_differ_in_more_than_colour(page):
    assert len({trace["dash"] for trace in page.traces()}) == len({trace["color"] for trace in page.traces()}) == 3


def test_smoothing(page):
    page.choose("train/loss")

    def roughness() -> float:
        y = page.traces()[2]["y"]
        return sum(abs(b - a) for a, b in itertools.pairwise(y))

    page.slide("#smooth", 0)
    rough = roughness()
    page.slide("#smooth", 0.95)
    assert roughness() < rough / 3
    assert page.at("#smooth-value").text == "0.95"


def test_runs_can_be_switched_off_and_on(page):
    page.click("#legend button:nth-child(1)")
    assert page.at("#legend button:nth-child(1)").get_attribute("aria-pressed") == "false"
    assert len(page.traces()) == len(page.texts("#arrivals tbody tr")) == 2
    page.click("#show-none")
    assert page.traces() == [] and page.at("#empty").text == "All runs are switched off."
    page.click("#show-all")
    assert len(page.traces()) == 3


def test_zoom_by_mouse_button_and_key(page):
    whole = page.range()
    plot = page.at("#curves .nsewdrag")
    ActionChains(page.driver).move_to_element_with_offset(plot, -200, -100).click_and_hold().move_by_offset(
        200, 80
    ).release().perform()
    page.wait(lambda: page.range()[0][1] - page.range()[0][0] < 0.5 * (whole[0][1] - whole[0][0]))
    page.click("#zoom-reset")
    assert page.range() == whole
    page.click("#zoom-in")
    assert page.range()[0][1] < whole[0][1]
    page.click("#zoom-out")
    assert page.range()[0] == pytest.approx(whole[0], abs=1)
    page.at("#curves").send_keys(Keys.ARROW_RIGHT)
    assert page.range()[0][0] > whole[0][0]
    page.at("#curves").send_keys("0")
    assert page.range() == whole


def test_zooming_in_shows_more_points(page):
    page.click("#grouped")
    page.choose("train/loss")
    page.js("state.range = {x: [100, 300], y: [0, 5]}; drawCurves()")
    x = page.traces()[0]["x"]
    assert [v for v in x if 100 <= v <= 300] == [100 + 10 * i for i in range(21)]


def test_target_typed_dragged_and_moved_by_key(page):
    def steps() -> str:
        return page.texts("#arrivals tbody tr")[0]

    def target() -> float:
        return float(page.at("#target").get_attribute("value"))

    first = steps()
    page.at("#target").clear()
    page.at("#target").send_keys("2.5")
    assert steps() != first
    assert page.at("#handle").get_attribute("aria-valuenow") == "2.5000"
    assert "2.5" in page.at("#target-title").text
    page.at("#target").send_keys(Keys.TAB)
    ActionChains(page.driver).drag_and_drop_by_offset(page.at("#handle"), 0, -60).perform()
    assert target() > 2.6
    page.at("#handle").send_keys(Keys.ARROW_DOWN * 5)
    before = target()
    page.at("#handle").send_keys(Keys.ARROW_DOWN)
    assert target() == pytest.approx(before - 0.01, abs=1e-6)
    page.at("#target").clear()
    page.at("#target").send_keys("0.1")
    assert "not reached" in steps() and not page.at("#handle").is_displayed()
    page.at("#target").clear()
    assert steps() == first


def test_time_to_target_agrees_with_the_command(page, report):
    found = json.loads(report.with_suffix(".json").read_text())
    assert float(page.at("#target").get_attribute("value")) == found["target"]
    groups = {group["label"]: group for group in found["groups"]}
    rows = page.js("return arrivals().map((row) => [row.line.label, row.at, row.faster, row.reached])")
    assert len(rows) == 3
    for label, at, faster, reached in rows:
        expected = groups[label.split(" \u00d7")[0]]["to_target"]
        assert reached == expected["reached"]
        for axis in at:
            assert at[axis]["mean"] == pytest.approx(expected[axis]["mean"], rel=1e-5)
            assert (at[axis]["spread"] or 0) == pytest.approx(expected[axis]["spread"] or 0, rel=1e-4, abs=1e-3)
            assert faster[axis] == pytest.approx(expected[axis]["times_faster"], rel=1e-4)
    assert page.at("#headline").text == ""  # the corpora differ


def test_results_are_those_of_the_command(page, report):
    """The same numbers, formatted alike; the page shows another dash and puts sizes last."""
    groups = {group["label"]: group for group in json.loads(report.with_suffix(".json").read_text())["groups"]}
    head = page.texts("#results thead th")
    assert head[:3] == ["run", "val loss", "streaming"] and head[-2:] == ["mixer", "status"]
    keys = {measure.heading: key for key, measure in table.MEASURES.items()}
    for row in page.driver.find_elements(By.CSS_SELECTOR, "#results tbody tr"):
        label, *cells = (cell.text for cell in row.find_elements(By.CSS_SELECTOR, "th, td"))
        group = groups[label.split(" \u00d7")[0]]
        assert cells[-2:] == [group["mixer"], "finished"]
        for heading, cell in zip(head[1:-2], cells, strict=False):
            measure, numbers = table.MEASURES[keys[heading]], group[keys[heading]]
            stat = table.Stat(*(float("nan") if number is None else number for number in numbers.values()))
            assert cell == stat.text(measure.form, measure.spread).replace("-", "\u2013")


def test_numbers_are_written_as_in_the_terminal(page):
    values = [0, 0.00012345, 1.5678, -48.62, 99.96, 813, 3250, 99_960, 123_456, 999_499, 999_600, -999_600, 12_345_678]
    values += [999_600_000, 4.2e12, 1e5, 1e6]
    assert page.js("return arguments[0].map(short)", values) == [short(value) for value in values]
    assert page.js("return short(NaN)") == "\u2013"


def test_the_default_target_leaves_out_runs_that_diverged_and_are_hidden(browser, tmp_path):
    run_of(tmp_path, "a", {10: {"val/loss": 1.50001, "val/loss_streaming": 1.25}})
    run_of(tmp_path, "b", {10: {"val/loss": 1.75, "val/loss_streaming": 1.5}}, model={"width": 2})
    run_of(tmp_path, "c", {10: {"val/loss": 4.0, "val/loss_streaming": 4.0}}, model={"width": 4}, status="diverged")
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    browser.open((tmp_path / "a.html").as_uri())

    def target() -> float:
        return float(browser.at("#target").get_attribute("value"))

    assert target() == 1.75
    browser.choose("val/loss_streaming")
    assert target() == 1.5
    browser.choose("val/loss")
    browser.click("#legend button:nth-child(2)")
    assert target() == 1.5001
    browser.click("#legend button:nth-child(1)")
    assert target() == 4


def test_curves_of_seeds_are_their_mean_and_range(browser, tmp_path):
    run_of(tmp_path, "gru-s1", {100: 3.0, 300: 1.0}, seed=1)
    run_of(tmp_path, "gru-s2", {100: 5.0, 200: 4.0, 300: 2.0}, seed=2)
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    browser.open((tmp_path / "a.html").as_uri())
    (mean,) = browser.traces()
    assert (mean["x"], mean["y"]) == ([100, 200, 300], [4, 3, 1.5])
    area = browser.js("return document.getElementById('curves').data.find((t) => t.fill === 'toself')")
    assert (area["x"], area["y"]) == ([100, 200, 300, 300, 200, 100], [5, 4, 2, 1, 2, 3])


def test_smoothing_is_an_average_with_the_start_corrected(browser, tmp_path):
    run_of(tmp_path, "a", {10 * i: {"train/loss": value} for i, value in enumerate([4.0, 2.0, 1.0], start=1)})
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    browser.open((tmp_path / "a.html").as_uri())
    browser.slide("#smooth", 0.5)
    weighted = [4.0, (0.25 * 4 + 0.5 * 2) / 0.75, (0.125 * 4 + 0.25 * 2 + 0.5 * 1) / 0.875]
    assert browser.traces()[0]["y"] == pytest.approx(weighted, rel=1e-6)


def test_results_can_be_sorted(page):
    def names() -> list[str]:
        return page.texts("#results tbody th")

    best = names()
    assert best[0] == "mingru \u00d72"
    assert page.at("#results th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.click("#results [data-sort='val/loss']")
    assert names() == best[::-1]
    page.at("#results [data-sort='label']").send_keys(Keys.ENTER)
    assert sorted(names(), key=str.casefold) == names()
    assert page.js("return document.activeElement.dataset.sort") == "label"


def test_samples_side_by_side_by_step(page):
    last = page.texts("#samples pre")
    assert len(last) == 3 and last[1].startswith("ROMEO:")
    page.slide("#sample-step", 0)
    assert page.at("#sample-value").text == "300"
    assert page.texts("#samples pre")[1] != last[1]
    page.at("#sample-step").send_keys(Keys.END)
    assert page.texts("#samples pre") == last


def test_a_sample_says_how_to_look_into_its_run(page, report):
    """By a command; the name of a run that a shell would not take for one word is left out."""
    commands = page.texts("#samples .inspect code")
    assert commands[0].startswith("char-lm inspect /") and commands[0].endswith("/attention-s1/inside.html")
    assert commands[2] == "char-lm inspect RUN --html RUN/inside.html"


def test_runs_on_one_text_are_ranked_in_a_sentence(browser, tmp_path):
    for mixer in ("attention", "mingru"):
        fake_run(tmp_path / "runs", mixer, mixer)
    assert compare([str(tmp_path / "runs"), "--html", str(tmp_path / "report.html")]) == 0
    assert "times fewer steps" in browser.open((tmp_path / "report.html").as_uri()).at("#headline").text


def test_a_sample_links_to_the_inside_of_its_run(browser, tmp_path):
    """By an address as seen from the page, so that both can be moved or served together."""
    run = fake_run(tmp_path / "runs", "50% #1", "mingru", 1)
    (run / "inside.html").write_text("<title>inside</title>", encoding="utf-8")
    (tmp_path / "pages").mkdir()
    assert compare([str(tmp_path / "runs"), "--html", str(tmp_path / "pages" / "report.html")]) == 0
    page = browser.open((tmp_path / "pages" / "report.html").as_uri())
    link = page.at("#samples .inspect a")
    assert link.get_dom_attribute("href") == "../runs/50%25%20%231/inside.html"
    link.click()
    assert page.js("return document.title") == "inside"


def test_differences(page):
    rows = page.texts("#differences tbody tr")
    assert any(row.startswith("model.mixer attention mingru") for row in rows)
    assert any(row.startswith("seed 1, 2 1, 2 1") for row in rows)


def test_losses_against_the_options_that_a_search_has_tried(browser, report, tmp_path):
    assert browser.open(report.as_uri()).js("return document.getElementById('parameters-section').hidden")
    for number, (rate, loss, status) in enumerate(
        [(0.01, 1.6, "finished"), (0.03, 1.5, "finished"), (0.1, 9, "pruned")]
    ):
        run_of(
            tmp_path,
            f"a{number}",
            {10: loss},
            status=status,
            optim={"muon_lr": rate},
            data={"column": HOSTILE * number},
        )
    run_of(tmp_path, "b", {10: 1.7}, mixer="gru", optim={"muon_lr": 0.03})
    compare([str(tmp_path), "--html", str(tmp_path / "page.html")])
    browser.open((tmp_path / "page.html").as_uri())
    assert browser.texts("#parameters figcaption") == ["data.column", "optim.muon_lr"]
    assert browser.texts("#parameters-legend span") == ["mingru", "gru"]
    script = "const p = document.querySelectorAll('#parameters .small')[1];"
    points = browser.js(f"{script} return p.data.filter((t) => t.x.length).map((t) => [t.x, t.y, t.marker.symbol])")
    assert points == [[[0.01, 0.03], [1.6, 1.5], "circle"], [[0.1], [9], "circle-open"], [[0.03], [1.7], "square"]]
    kind, ticks, high = browser.js(
        f"{script} const l = p.layout; return [l.xaxis.type, l.xaxis.ticktext, l.yaxis.range[1]]"
    )
    assert (kind, ticks) == ("log", ["0.01", "0.03", "0.1"]) and 1.7 < high < 2
    assert browser.complaints() == []
    browser.click("#legend button")
    assert browser.js(f"{script} return p.data[0].x.length") == 1


def test_speed_norm_and_rate_are_drawn(page):
    for plot in ("speed", "norm", "rate"):
        assert page.js("return document.getElementById(arguments[0]).data.length", plot) >= 3
        assert page.at(f"#{plot} .scatterlayer path.js-line")


def test_hostile_text_stays_text(page):
    assert page.js("return window.hacked") is None
    assert HOSTILE in page.texts("#results tbody th")
    assert any(HOSTILE in text for text in page.texts("#samples pre"))
    assert page.js("return document.images.length") == 0
    page.js("arguments[0].scrollIntoView({block: 'center'})", page.at("#curves"))
    ActionChains(page.driver).move_to_element_with_offset(page.at("#curves .nsewdrag"), 30, -60).perform()
    page.wait(lambda: HOSTILE in page.at("#curves .hoverlayer").text)
    assert page.js("return window.hacked") is None


def test_themes(browser, report):
    for dark in (False, True):
        browser.open(report.as_uri(), dark=dark)
        grounds = [browser.js("return getComputedStyle(document.body).backgroundColor")]
        colours = [browser.traces()[0]["color"]]
        browser.click("#theme")
        grounds.append(browser.js("return getComputedStyle(document.body).backgroundColor"))
        colours.append(browser.traces()[0]["color"])
        assert len(set(grounds)) == len(set(colours)) == 2
        assert (sum(map(int, grounds[0][4:-1].split(","))) < 200) == dark
        browser.js("localStorage.clear()")


def test_files(page, report, tmp_path):
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    for kind in ("csv", "png", "svg"):
        page.click(f"#save-{kind}")
    names = ["comparison.csv", "curves.png", "curves.svg"]
    page.wait(lambda: all((tmp_path / name).exists() for name in names))
    rows = list(csv.DictReader((tmp_path / "comparison.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["mingru \u00d72", HOSTILE, "attention \u00d72"]
    found = json.loads(report.with_suffix(".json").read_text())
    group = next(group for group in found["groups"] if group["label"] == "mingru")
    numbers = {key: group[key]["mean"] for key in table.MEASURES}
    numbers |= {f"{key} spread": group[key]["spread"] for key in table.MEASURES}
    numbers |= {f"target {axis}": group["to_target"][axis]["mean"] for axis in AXES}
    numbers = {key: number for key, number in numbers.items() if number is not None}
    assert {key: float(text) for key, text in rows[0].items() if key in numbers} == pytest.approx(numbers, rel=1e-5)
    assert rows[0]["val/accuracy"] == ""
    assert (rows[0]["mixer"], rows[0]["status"]) == ("mingru", "finished")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "curves.svg").read_text()
    assert "attention" in svg and HOSTILE not in svg


def test_everything_has_a_name_and_can_be_reached_by_key(page):
    unnamed = page.js("""
        const labelled = (e) => e.ariaLabel || e.hasAttribute("aria-labelledby") || e.labels?.length;
        const all = document.querySelectorAll("button, input, select, [role=slider], [role=group], section");
        return [...all].filter((e) => !labelled(e) && !e.textContent.trim()).map((e) => e.outerHTML)""")
    assert unnamed == []
    reached = set()
    for _ in range(40):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.add(page.js("return document.activeElement.id || document.activeElement.dataset.line"))
    assert {
        "theme",
        "y",
        "target",
        "logx",
        "grouped",
        "smooth",
        "curves",
        "handle",
        "zoom-in",
        "save-csv",
        "0",
    } <= reached


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser, report, dark, tmp_path):
    browser.open(report.as_uri(), width=390, dark=dark)
    assert browser.js("const page = document.documentElement; return page.scrollWidth - page.clientWidth") == 0
    picture = browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]
    assert len(base64.b64decode(picture)) > 10_000


def test_twenty_runs_of_five_thousand_rows(browser, tmp_path):
    for i in range(20):
        fake_run(tmp_path, f"run-{i}", seed=i, rows=5000, validations=50, model={"width": 2 + i})
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    browser.open((tmp_path / "a.html").as_uri())
    milliseconds = browser.js(
        "const at = (n) => performance.getEntriesByName(n)[0].startTime; return at('drawn') - at('start')"
    )
    assert milliseconds < 8000  # 0.6 s on a quiet machine; the bound leaves room for a crowded one
    browser.choose("train/loss")
    assert len(browser.traces()) == 20


def test_no_runs_yet_and_no_validation_yet(browser, tmp_path):
    fake_run(tmp_path, "a", validations=0)
    assert compare([str(tmp_path), "--html", str(tmp_path / "a.html")]) == 0
    browser.complaints()
    browser.open((tmp_path / "a.html").as_uri())
    assert browser.at("#y").get_attribute("value") == "train/loss" and len(browser.traces()) == 1
    browser.choose("val/loss")
    assert browser.at("#empty").text == "No validation loss yet."
    assert browser.complaints() == []


def test_a_served_page_follows_training(browser, tmp_path):
    feed = Feed(Reader([str(tmp_path / "runs")]), "val/loss", None)
    server = make_server(feed, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        assert browser.at("#empty").text == "No run yet."
        path = fake_run(tmp_path / "runs", "a", rows=20, validations=2, status="running")
        browser.wait(lambda: browser.at("#live").text == "following, 1 running")
        assert browser.traces()[0]["x"] == [100, 200]
        with (path / "metrics.csv").open("a") as file:
            file.write(csv_row((300, 1, 1, 1), {"val/loss": 1.5}) + "\n400,163840")  # killed in the middle of a row
        browser.wait(lambda: browser.traces()[0]["x"] == [100, 200, 300])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    browser.wait(lambda: "no answer" in browser.at("#live").text)
    assert len(browser.traces()) == 1
