"""The page of `char-lm inspect --html` in a real browser: each view is operated, its numbers compared with Python's."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lm.analysis.inspect.pictures import shares
from lm.analysis.inspect.traces import predict, traces
from lm.runs.load import load
from lm.sampling import generate
from lm.sampling.packed import Packed, pack
from tests.analysis.inspect.conftest import HOSTILE
from tests.browser import ActionChains, By, Keys, Page, chromium, needs_browser
from tests.commands import inspect

pytestmark = needs_browser
TEXT = f"ROMEO:\nWhat, ho!\n\n{HOSTILE}:\n" + "Speak \u4e16 again, bright angel.\n" * 12
VIEWS = ["surprise", "writing", "memory", "channel", "meaning", "sources", "beside"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as driver:
        yield Page(driver)


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory) -> Path:
    """two.html of a minGRU beside a minLSTM, and two.txt, what the command printed; attention.html of a model that does
    not run in a page."""
    folder = tmp_path_factory.mktemp("pages")
    words = ["--runs", str(runs), "--text", TEXT, "--chars", "1000"]
    with (folder / "two.txt").open("w") as printed, contextlib.redirect_stdout(printed):
        assert inspect(["mingru", *words, "--beside", "minlstm", "--html", str(folder / "two.html")]) == 0
    assert inspect(["attention", *words, "--html", str(folder / "attention.html")]) == 0
    return folder


@pytest.fixture
def page(browser, pages) -> Iterator[Page]:
    """The page of two models, fresh; fails the test if it asked the network for anything or complained."""
    browser.complaints()
    browser.driver.get("about:blank")  # or another fragment would not load the page again
    browser.open((pages / "two.html").as_uri())
    yield browser
    assert browser.complaints() == []
    assert browser.js("return window.hacked") is None


def model_in_page(runs, name):
    """The model with the weights that the page has, and its tokenizer."""
    model, tokenizer = load(runs / name)
    return Packed(model, "bfloat16").model, tokenizer


def array(page, expression) -> np.ndarray:
    return np.array(page.js(f"return Array.from({expression})"))


def view(page, name) -> None:
    page.click(f"#tab-{name}")
    assert page.at(f"#tab-{name}").get_attribute("aria-selected") == "true"


def background(page, place) -> str:
    return page.js("return shown.spans[arguments[0]].style.backgroundColor", place)


def test_predictions_gates_and_states_are_pythons(page, runs):
    for reader, name in (("reader", "mingru"), ("other", "minlstm")):
        model, tokenizer = model_in_page(runs, name)
        ids = tokenizer.encode(TEXT)
        want = predict(model, ids)
        n = len(ids)
        np.testing.assert_allclose(array(page, f"{reader}.bits.subarray(0, {n})"), want.bits, atol=1e-4)
        found = array(page, f"{reader}.shares.subarray(0, {10 * n})").reshape(n, 10)
        np.testing.assert_allclose(found, want.probabilities, atol=1e-5)
        (trace,) = traces(model, ids)
        for part in ("z", "h"):
            layers = [array(page, f"{reader}.{part}[{i}].subarray(0, {64 * n})").reshape(n, 64) for i in (0, 1)]
            np.testing.assert_allclose(np.concatenate(layers, 1), getattr(trace, part), atol=1e-4)


def test_surprise(page):
    bits = array(page, "reader.bits.subarray(0, reader.n)")
    assert page.at("#summary").text.startswith(f"{len(TEXT)} characters, {bits.sum():,.0f} bits")
    assert "12 characters the model has never seen" in page.at("#summary").text
    totals = page.texts("#text .total")
    assert totals[0] == f"{bits[:7].sum():.0f}" and len(totals) == TEXT.count("\n")
    lines = page.js("return shown.spans.map((span) => span.dataset.lines)")
    assert [line == "over-2" for line in lines] == [4 <= b < 8 for b in bits]
    rows = page.texts("#speakers tbody tr")
    assert [row.split(" ")[0] for row in rows] == ["ROMEO", HOSTILE.split(" ")[0]]
    assert page.js("return document.images.length") == 0


def test_hovering_shows_the_ten_likeliest_and_a_click_forks(page):
    place = TEXT.index("Speak")
    for at in (place + 2, place + 9):
        ActionChains(page.driver).move_to_element(page.at(f"#text [data-place='{at}']")).perform()
        assert page.at("#place").text.startswith(f"{TEXT[at]} character {at + 1} of {len(TEXT)}, ")
    page.click(f"#text [data-place='{place}']")
    ActionChains(page.driver).move_to_element(page.at(f"#text [data-place='{place + 2}']")).perform()
    assert page.js("return state.place") == place  # it was pinned by the click
    likely = page.texts("#detail li")
    assert len(likely) in (10, 11) and likely[0].endswith("%")
    button = page.at("#detail li button")
    char = page.js("return reader.expected(arguments[0])[0].char", place)
    button.click()
    page.wait(lambda: not page.js("return writer.running"))
    text = page.js("return shown.chars.join('')")
    assert text[: place + 1] == TEXT[:place] + char and len(text) == place + 1 + 200
    assert (
        page.js("return [...shown.spans].map((s) => s.classList.contains('written'))") == [False] * place + [True] * 201
    )
    page.click("#write-again")
    page.wait(lambda: page.js("return shown.chars.join('')") == TEXT)


@pytest.mark.parametrize(("seed", "temperature", "stop"), [(5, 0.8, ""), (2**63 + 1, 0, ""), (1, 1.2, "e")])
def test_writing_is_that_of_generate(page, runs, seed, temperature, stop):
    """At once, and character by character; a stop text is cut off."""
    model, tokenizer = load(runs / "mingru")
    options = {"temperature": temperature, "top_k": 20, "min_p": 0.01, "seed": seed, "stop": stop or None}
    want = "".join(generate(pack(model, "bfloat16"), tokenizer, TEXT, 60, **options))
    view(page, "writing")
    values = {"temperature": temperature, "top_k": 20, "min_p": 0.01, "seed": seed, "stop": stop, "chars": 57}
    page.js(
        "for (const [n, v] of Object.entries(arguments[0])) $(`write-${n}`).value = v",
        {k: str(v) for k, v in values.items()},
    )
    page.click("#write-go")
    page.wait(lambda: not page.js("return writer.running"))
    for _ in range(0 if stop else 3):
        page.click("#write-step")
        page.wait(lambda: not page.js("return writer.running"))
    assert page.js("return shown.chars.join('')") == TEXT + want
    assert "written" in page.at("#summary").text or not want
    if want:
        page.click("#write-again")
        page.wait(lambda: page.js("return shown.chars.join('')") == TEXT)


def test_memory(page):
    view(page, "memory")
    assert page.js("return $('map').width") > 300
    assert len(page.texts("#times figure")) == 2 and "longest" in page.texts("#times figcaption")[0]
    order = page.js("return ordered(state.layer).map((c) => study.time[c])")
    assert order == sorted(order, reverse=True)
    first = page.js("return $('map').toDataURL()")
    page.click("#gates input[value=h] + span")
    assert page.js("return $('map').toDataURL()") != first
    page.click("#all")
    page.js("$('map').focus()")
    before = page.js("return [state.place, state.channel]")
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    after = page.js("return [state.place, state.channel]")
    assert after[0] == before[0] + 1 and after[1] != before[1]
    page.click("#layer option[value='1']")
    assert page.js("return layerOf(state.channel)") == 1
    assert "character" in page.at("#map").get_attribute("aria-label")


def test_a_channel_on_the_text_and_its_extremes(page):
    view(page, "channel")
    page.js("$('channel-name').value = '2.5'; $('channel-name').dispatchEvent(new Event('change'))")
    assert page.js("return state.channel") == 64 + 4
    values = page.js("return shown.spans.map((_, place) => standard(state.channel, place))")
    high, low = int(np.argmax(values)), int(np.argmin(values))
    if values[high] > 0.2:
        assert "213, 94, 0" in background(page, high)
    if values[low] < -0.2:
        assert "0, 114, 178" in background(page, low)
    page.click("#channel-next")
    assert page.js("return state.channel") != 64 + 4
    passage = page.at("#highest button")
    char = passage.find_element(By.TAG_NAME, "mark").text
    passage.click()
    page.wait(lambda: page.js("return shown.chars.join('')") != TEXT)
    page.wait(lambda: page.js("return visible(shown.chars[state.place])") == char)
    page.click("#given")
    page.wait(lambda: page.js("return shown.chars.join('')") == TEXT)
    page.js("$('channel-name').value = '9.9'; $('channel-name').dispatchEvent(new Event('change'))")
    assert page.at("#channel-name").get_attribute("value") != "9.9"


def test_what_channels_stand_for(page, pages):
    """The table is that of the command; a channel of it can be chosen."""
    view(page, "meaning")
    rows = page.driver.find_elements(By.CSS_SELECTOR, "#clearest tbody tr")
    found = [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td, th")] for row in rows]
    printed = (pages / "two.txt").read_text().split("time constant\n")[-1].splitlines()[1:]
    assert 1 <= len(rows) <= 20
    for (channel, feature, *numbers), line in zip(found, printed, strict=True):
        assert re.split(r" {2,}", line)[:4] == [feature, channel, *(n.replace("\u2212", "-") for n in numbers)]
    button = rows[-1].find_element(By.TAG_NAME, "button")
    name = button.text
    button.click()
    assert page.js("return nameOf(state.channel)") == name
    assert name in page.at("#summary").text
    assert page.at("#clearest [aria-current]").text == name
    ActionChains(page.driver).move_to_element(page.at("#correlations")).perform()
    assert ", channel " in page.at("#correlation-at").text


def test_where_it_comes_from(page, runs):
    """Shares of a channel are those of Python and sum to 1; those of a layer of one channel would be the same."""
    view(page, "sources")
    t = 150
    model, tokenizer = model_in_page(runs, "mingru")
    (trace,) = traces(model, tokenizer.encode(TEXT))
    for channel in (3, 70):
        page.js("select(arguments[0])", channel)
        found = np.array(page.js("return [...sharesAt(arguments[0])]", t))
        np.testing.assert_allclose(found, shares(trace.z[:, channel], trace.h[:, channel])[t, : t + 1], atol=1e-4)
        assert found.sum() == pytest.approx(1, abs=1e-4)
    page.click("#whole")
    norms = np.array(page.js("return [...sharesAt(arguments[0])]", t))
    matrices = [shares(trace.z[:, c], trace.h[:, c])[t, : t + 1] * trace.h[t, c] for c in range(64, 128)]
    want = np.linalg.norm(matrices, axis=0) / np.linalg.norm(trace.h[t, 64:])
    np.testing.assert_allclose(norms, want, atol=1e-4)
    page.click(f"#text [data-place='{t}']")
    assert background(page, t) and page.texts("#detail li")


def test_two_models(page):
    view(page, "beside")
    bits = [array(page, f"{name}.bits.subarray(0, reader.n)") for name in ("reader", "other")]
    assert len(page.driver.find_elements(By.CSS_SELECTOR, "#detail ol")) == 2
    total = bits[0].sum() - bits[1].sum()
    assert page.at("#summary").text.replace("\u2212", "-").endswith(f"difference {total:+.1f} bits in all")
    lines = page.js("return shown.spans.map((span) => span.dataset.lines)")
    assert [line.startswith("over") for line in lines] == [d >= 1 for d in bits[0] - bits[1]]


def test_typing(page):
    """Live; what is typed is text, whatever it looks like; what is too long is cut, and nothing at all is no error."""
    page.click("#typing summary")
    page.at("#typed").send_keys(Keys.CONTROL, "a", Keys.DELETE)
    page.wait(lambda: page.js("return shown.chars.length") == 0)
    assert page.at("#detail").text == "" or "Nothing" in page.at("#detail").text
    for name in VIEWS:
        view(page, name)
    page.click("#typed")
    page.at("#typed").send_keys("KING:\n<b>Ay</b> \u00e9")
    page.wait(lambda: page.js("return shown.chars.join('')") == "KING:\n<b>Ay</b> \u00e9")
    assert page.driver.find_elements(By.CSS_SELECTOR, "#text b") == []
    assert page.js("return shown.spans.at(-1).className").startswith("unknown")
    page.js("$('typed').value = 'x'.repeat(20000); $('typed').dispatchEvent(new Event('input'))")
    page.wait(lambda: page.at("#cut").text == "Only the first 10,000 of 20,000 characters are read.")
    assert page.js("return reader.n") == 10_000


def test_keys_move_in_the_text_and_between_views(page):
    page.js("place(0, true); $('text').focus()")
    ActionChains(page.driver).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.END).perform()
    assert page.js("return state.place") == len(TEXT)
    ActionChains(page.driver).send_keys(Keys.ARROW_LEFT, Keys.ARROW_UP).perform()
    assert page.js("return shown.lines.includes(state.place) || shown.chars[state.place]") == "\n"
    page.at("#tab-surprise").send_keys(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement.id") == "tab-writing"
    unnamed = page.js("""
        const labelled = (e) => e.ariaLabel || e.hasAttribute("aria-labelledby") || e.labels?.length;
        const named = (e) => labelled(e) || e.textContent.trim();
        return [...document.querySelectorAll("button, input, select, textarea, canvas, [role]")]
          .filter((e) => !named(e) && e.checkVisibility()).map((e) => e.outerHTML)""")
    assert unnamed == []


def test_an_address_opens_a_view(browser, pages):
    browser.driver.get("about:blank")
    browser.open((pages / "two.html").as_uri() + "#view=channel&channel=2.7&place=20")
    assert browser.js("return [state.view, nameOf(state.channel), state.place]") == ["channel", "2.7", 20]
    browser.driver.get("about:blank")
    browser.open((pages / "two.html").as_uri() + "#view=none&channel=99.x&place=-5")
    assert browser.js("return [state.view, state.place]") == ["surprise", 0]


def test_a_model_that_does_not_run_in_a_page(browser, pages, runs):
    browser.complaints()
    browser.open((pages / "attention.html").as_uri())
    model, tokenizer = load(runs / "attention")
    want = predict(model, tokenizer.encode(TEXT))
    np.testing.assert_allclose(array(browser, "reader.bits"), want.bits, atol=1e-5)
    assert browser.texts("#tabs button") == ["Surprise"] and "does not run this model" in browser.at("#warnings").text
    browser.click("#text [data-place='20']")
    assert len(browser.texts("#detail li")) in (10, 11) and browser.texts("#detail button") == []
    assert not browser.at("#typing").is_displayed() and browser.complaints() == []


def test_a_damaged_model_is_said_in_a_line(browser, pages, tmp_path):
    html = (pages / "two.html").read_text()
    image = json.loads(html.split('type="application/json">')[1].split("</script>")[0])["models"][0]["block"]["image"]
    broken = image[:1000] + ("B" if image[1000] == "A" else "A") + image[1001:]
    (tmp_path / "broken.html").write_text(html.replace(image, broken))
    browser.driver.get((tmp_path / "broken.html").as_uri())
    browser.wait(lambda: browser.at("#problem").is_displayed())
    assert "damaged" in browser.at("#problem").text and not browser.at("#view").is_displayed()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser, pages, dark):
    browser.driver.get("about:blank")
    browser.open((pages / "two.html").as_uri(), width=390, dark=dark)
    for name in VIEWS:
        browser.js("$(`tab-${arguments[0]}`).click()", name)
        assert browser.js("const page = document.documentElement; return page.scrollWidth - page.clientWidth") == 0, (
            name
        )
        box = browser.js("return $(`tab-${arguments[0]}`).getBoundingClientRect()", name)
        assert box["left"] >= 0 and box["right"] <= 390, name
    assert browser.js("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
