"""The page of `char-lm export --format web` in a real browser: each control is operated, and its effect checked."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lm import load
from lm.config.options import Config, ModelConfig
from lm.corpora.tokenizer import CharTokenizer
from lm.model import LanguageModel
from lm.runs.load import Trained
from lm.sampling.packed import Packed
from lm.sampling.text import generate
from lm.sampling.web.page import render
from tests.browser import ActionChains, Keys, Page, chromium, needs_browser
from tests.commands import export

pytestmark = needs_browser
HOSTILE = "</script><img src=x onerror=window.hacked=1>"
NO_VECTORS = "WebAssembly.validate = () => false"


class Writing(Page):
    """The page that types and reads."""

    ready = "ready"

    def set(self, **values: object) -> None:
        """Type into controls, named by their ids."""
        for name, value in values.items():
            self.slide(f"#{name}", str(value))

    def write(self) -> str:
        """Write to the end; returns the text."""
        self.click("#go")
        self.wait(lambda: self.at("#go").text == "Go on")
        return self.text()

    def text(self) -> str:
        return self.js("return document.getElementById('text').textContent")

    @property
    def status(self) -> str:
        return self.at("#status").text

    def press(self, *keys: str) -> None:
        actions = ActionChains(self.driver)
        for key in keys[:-1]:
            actions.key_down(key)
        actions.send_keys(keys[-1])
        for key in keys[:-1]:
            actions.key_up(key)
        actions.perform()


@pytest.fixture(scope="module")
def browser() -> Iterator[Writing]:
    with chromium() as driver:
        yield Writing(driver)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert export(["pretrained", str(path), "--format", "web"]) == 0
    return path


@pytest.fixture
def page(browser: Writing, file: Path) -> Iterator[Writing]:
    """The page, fresh; fails the test if it asked the network for anything or complained."""
    browser.complaints()
    browser.open(file.as_uri())
    yield browser
    assert browser.complaints() == []


@pytest.fixture(scope="module")
def expected():
    """What Python writes with the weights of the page."""
    model, tokenizer = load("pretrained")
    engine = Packed(model, "bfloat16")
    return lambda prompt, chars, **options: "".join(generate(engine, tokenizer, prompt, chars, **options))


def test_writing_and_going_on(page, expected):
    page.set(prompt="ROMEO:\n", seed=7, chars=150)
    text = "ROMEO:\n" + expected("ROMEO:\n", 300, seed=7, temperature=0.8)
    assert page.write() == text[: 7 + 150]
    assert page.status.startswith("150 characters written: as many as asked for")
    assert page.write() == text
    assert page.js("return document.querySelector('#text .given').textContent") == "ROMEO:\n"
    page.click("#again")
    assert page.text() == page.status == "" and page.at("#go").text == "Write"
    assert page.write() == text[: 7 + 150]


def test_every_option_of_sampling(page, expected):
    options = {"temperature": 1.2, "top_k": 20, "top_p": 0.95, "min_p": 0.02, "seed": 2**64 - 1}
    page.set(chars=60, **options)
    assert page.write() == expected("", 60, **options)


def test_step_by_step(page, expected):
    text = expected("", 5, seed=0, temperature=0.8)
    for n in (1, 2, 3):
        page.click("#step")
        page.wait(lambda n=n: page.text() == text[:n])
    page.set(chars=5)
    assert page.write() == text and page.status.startswith("5 characters written")


def test_a_stop_string_is_not_shown_until_the_text_goes_on(page, expected):
    page.set(seed=3, stop="\\n\\n", chars=2000)
    text = expected("", 2000, seed=3, temperature=0.8, stop="\n\n")
    assert page.write() == text and len(text) < 2000
    assert page.status.startswith(f"{len(text) + 2} characters written: the stop text comes next")
    page.set(stop="", chars=10)
    assert page.write() == expected("", len(text) + 12, seed=3, temperature=0.8)


def test_running_pausing_and_options_meanwhile(page):
    page.set(chars=0)
    page.press(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: len(page.text()) > 400)
    assert page.at("#go").text == "Pause"
    page.press(Keys.ESCAPE)
    assert page.at("#go").text == "Go on"
    length = len(page.text())
    page.press(Keys.CONTROL, Keys.ARROW_RIGHT)
    page.wait(lambda: len(page.text()) == length + 1)
    page.click("#speed option[value='12']")
    page.click("#go")
    page.wait(lambda: len(page.text()) > length + 3)
    assert len(page.text()) < length + 200
    page.set(temperature=-1)
    assert page.at("#wrong").text.startswith("temperature: ")
    page.set(temperature=0)
    assert page.at("#wrong").text == ""
    page.click("#go")
    assert page.at("#go").text == "Go on"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("temperature", "-1", "temperature: "),
        ("top_k", "1.5", "top-k: "),
        ("top_p", "0", "top-p: "),
        ("min_p", "2", "min-p: "),
        ("chars", "", "characters: a number is needed"),
        ("seed", "x", "seed: a whole number at least 0 and below 2^64 is needed"),
        ("seed", str(2**64), "seed: a whole number at least 0 and below 2^64 is needed"),
    ],
)
def test_wrong_values_are_named(page, name, value, problem):
    page.set(**{name: value})
    page.click("#go")
    assert page.at("#wrong").text.startswith(problem) and page.text() == "" and page.at("#go").text == "Write"


def test_characters_never_seen(page, expected):
    prompt = f"caf\u00e9 \u65e5\u200b{HOSTILE}"
    page.set(prompt=prompt, chars=20)
    unseen = "\u00e9 \u65e5 U+200B < / > = 1"
    assert page.at("#unseen").text == f"Never seen in training: {unseen}"
    assert page.write() == prompt + expected(prompt, 20, temperature=0.8)
    assert page.texts("#text .unseen")[0] == "\u00e9" and page.js("return window.hacked") is None
    page.set(prompt="cafe")
    assert page.at("#unseen").text == "" and page.at("#go").text == "Write"


def test_hostile_names_and_vocabularies(browser, tmp_path):
    config = Config(name=HOSTILE, model=ModelConfig(width=16, layers=1))
    tokenizer = CharTokenizer("".join(set(HOSTILE)) + "\n\u2028")
    model = LanguageModel(len(tokenizer), config.model)
    path = tmp_path / "page.html"
    path.write_text(render(Trained(path, model.state_dict(), config, tokenizer, {}), "int8"), encoding="utf-8")
    browser.complaints()
    browser.open(path.as_uri())
    browser.set(prompt=HOSTILE, chars=200)
    assert browser.at("#subtitle").text.startswith(HOSTILE)
    written = browser.write()
    assert written.startswith(HOSTILE) and set(written) <= set(tokenizer.characters) and len(written) == 244
    assert browser.js("return window.hacked") is None and browser.complaints() == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[:100_000] + ("B" if text[100_000] == "A" else "A") + text[100_001:], "its checksum differs"),
        (lambda text: text.replace('"block":{', '"block":{{'), "The data of this page is damaged"),
    ],
)
def test_a_damaged_page_says_so_and_writes_nothing(browser, file, tmp_path, damage, message):
    path = tmp_path / "page.html"
    path.write_text(damage(file.read_text(encoding="utf-8")), encoding="utf-8")
    browser.open(path.as_uri())
    assert message in browser.at("#problem").text
    browser.press(Keys.CONTROL, Keys.ENTER)
    assert browser.text() == "" and not browser.at("#go").is_enabled()


def test_a_browser_without_vectors(browser, file):
    added = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_VECTORS})
    browser.open(file.as_uri())
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    assert (
        browser.at("#problem").text.startswith("This browser cannot run the model")
        and not browser.at("#go").is_enabled()
    )


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(browser, file, dark):
    browser.open(file.as_uri(), width=390, dark=dark)
    browser.set(prompt="a" * 300, chars=100)
    browser.write()
    assert browser.js("const page = document.documentElement; return page.scrollWidth - page.clientWidth") == 0
    assert browser.js("return document.documentElement.dataset.theme") == ("dark" if dark else "light")


def test_everything_has_a_name_and_can_be_reached_by_key(page):
    reached = []
    for _ in range(14):
        page.press(Keys.TAB)
        focused = page.driver.switch_to.active_element
        assert focused.accessible_name, focused.get_attribute("outerHTML")
        reached.append(focused.get_attribute("id"))
    names = "theme prompt temperature top_k top_p min_p seed chars stop speed go step again text"
    assert reached == names.split()


@pytest.mark.slow
def test_a_long_prompt_is_read_bit_by_bit(page):
    page.js("document.getElementById('prompt').value = 'To be, or not to be. '.repeat(200_000)")
    page.click("#go")
    page.wait(
        lambda: page.status.startswith("reading the prompt: ") and page.status.endswith(" of 4,200,000 characters")
    )
    page.set(prompt="A", chars=5)
    assert len(page.write()) == 6


@pytest.mark.slow
def test_of_a_long_text_the_end_is_shown(page):
    page.set(chars=110_000)
    page.click("#go")
    page.wait(lambda: page.status.startswith("110,000 characters written"), seconds=200)
    assert 90_000 < len(page.text()) <= 100_000
