"""engine.js and sampler.js in Chromium against their twins in Python."""

import base64
import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from lm import load
from lm.corpora.tokenizer import CharTokenizer
from lm.report.html import fill, texts
from lm.sampling.decoder import RandomStreams
from lm.sampling.filters import SamplingOptions, choose
from lm.sampling.packed import WEIGHTS, Packed
from lm.sampling.text import find_stop, generate
from lm.sampling.web import block, build
from lm.sampling.web.block import make_block
from lm.sampling.web.page import ENGINE
from tests.browser import Page, chromium, needs_browser
from tests.sampling.helpers import TOKENIZER
from tests.sampling.test_packed import MODELS, make
from tests.sampling.web.test_build import needs_clang

pytestmark = needs_browser
TOOLS = """
const floats = (x) => {
  const bytes = new Uint8Array(x.buffer, x.byteOffset, x.byteLength);
  let text = "";
  for (let i = 0; i < bytes.length; i += 4096) text += String.fromCharCode(...bytes.subarray(i, i + 4096));
  return btoa(text);
};
const engines = [];
performance.mark("ready");
"""
TEMPLATE = '<!--HEAD--><script id="data" type="application/json"><!--DATA--></script><!--SCRIPTS-->'


class Engines(Page):
    """A page with engines but without anything to see."""

    ready = "ready"

    def call(self, script: str, *arguments):
        """The result of the body of an async function, whose arguments are a, b, ...; an Error as its message."""
        names = ", ".join("abcdef"[: len(arguments)])
        body = f"const done = arguments[{len(arguments)}]; (async ({names}) => {{ {script} }})"
        return self.driver.execute_async_script(f"{body}(...arguments).then(done, (e) => done(e.message))", *arguments)

    def engine(self, block: dict) -> int:
        """The number of a new engine."""
        return self.call("engines.push(await Engine.create(a)); return engines.length - 1", block)

    def read(self, engine: int, ids: list[int]) -> list[np.ndarray]:
        """Logits, and the gates and states of each layer after the last 70 ids, flat."""
        script = """
          const [before, e] = [b.slice(0, -70), engines[a]];
          const first = e.read(before);
          const last = e.read(b.slice(-70), before.length ? first.position : null, { trace: true });
          return [first.logits, last.logits, ...last.z, ...last.h].map(floats)"""
        parts = [np.frombuffer(base64.b64decode(part), np.float32) for part in self.call(script, engine, ids)]
        return [np.concatenate(parts[:2]), *parts[2:]]


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[Engines]:
    """A page that may run WebAssembly and ask for nothing; it must not complain."""
    path = tmp_path_factory.mktemp("page") / "engines.html"
    path.write_text(fill(TEMPLATE, "", None, [*texts(*ENGINE), TOOLS], wasm=True), encoding="utf-8")
    with chromium() as driver:
        page = Engines(driver).open(path.as_uri())
        yield page
        assert page.complaints() == []


@pytest.fixture(scope="module")
def pretrained():
    return load("pretrained")


@pytest.fixture(scope="module")
def engine(page, pretrained) -> int:
    return page.engine(make_block(*pretrained))


def same(page: Engines, engine: int, fast: Packed, ids: list[int]) -> None:
    """Log-probabilities, gates and states are equal to 1e-4."""
    logits, *traced = page.read(engine, ids)
    trace = fast.trace(torch.tensor(ids))
    got = torch.from_numpy(logits).view(trace.logits.shape).log_softmax(-1)
    assert (got - trace.logits.log_softmax(-1)).abs().max() < 1e-4
    for ours, twin in zip(traced, (*trace.gates, *trace.states), strict=True):
        np.testing.assert_allclose(ours, twin[-70:].flatten().numpy(), atol=1e-4, rtol=1e-4)


def test_two_thousand_characters_of_the_pretrained_model(page, engine, pretrained):
    model, tokenizer = pretrained
    fast = Packed(model, "bfloat16")
    text = "".join(generate(fast, tokenizer, "ROMEO: \u00e9", 2000 - 8, seed=1))
    same(page, engine, fast, tokenizer.encode("ROMEO: \u00e9" + text).tolist())


def check_side_by_side(page, cases) -> None:
    """Models of several kinds and weights, in one page at the same time."""
    made = []
    for options, weights in cases:
        model = make(**options)
        V = model.embedding.num_embeddings
        if V > 1:  # no text has a character of the others
            ids = torch.randint(V, (70,)).tolist()
            made.append((page.engine(make_block(model, tokenizer_of(V), weights)), Packed(model, weights), ids))
    for case in made:
        same(page, *case)


def test_models_of_all_kinds_side_by_side(page):
    check_side_by_side(page, zip(MODELS.values(), itertools.cycle(WEIGHTS)))


@pytest.mark.slow
def test_models_of_all_kinds_with_all_weights(page):
    check_side_by_side(page, itertools.product(MODELS.values(), WEIGHTS))


def tokenizer_of(V: int) -> CharTokenizer:
    """A tokenizer with V ids."""
    return CharTokenizer("".join(map(chr, range(300, 299 + V))))


@needs_clang
@pytest.mark.slow
def test_a_module_that_is_built_here(page, pretrained, tmp_path, monkeypatch):
    """By whichever clang this is."""
    monkeypatch.setattr(block, "MODULE", tmp_path / "packed.wasm")
    build.build(block.MODULE)
    model, _ = pretrained
    same(page, page.engine(make_block(*pretrained, "int8")), Packed(model, "int8"), list(range(60)))


def test_the_module_itself_uses_no_memory_of_the_model(page):
    script = "return (await WebAssembly.instantiate(bytesOf(a))).instance.exports.__heap_base.value"
    module = base64.b64encode(build.MODULE.read_bytes()).decode()
    assert 32768 <= page.call(script, module) <= build.BASE


def test_positions_are_values(page, engine):
    """Reading in parts, or again from a kept position, gives the same numbers to the bit."""
    script = """
      const [e, ids] = [engines[a], engines[a].encode("To be, or not to be: that is the question. Whether it is")];
      const whole = e.read(ids);
      const [first, empty] = [e.read(ids.slice(0, 33)), e.read([])];
      const rest = e.read(ids.slice(33), first.position);
      const again = e.read(ids.slice(33), { ...first.position, drawn: 7 });
      const same = (x, y) => x.length === y.length && x.every((value, i) => value === y[i]);
      return [same(whole.position.state, rest.position.state), same(whole.logits.slice(-99), rest.logits.slice(-99)),
        same(rest.position.logits, again.logits.slice(-e.vocabulary.length)), again.position.drawn, whole.z,
        empty.logits.length, same(e.start().logits, e.read(e.encode("\\n")).position.logits)]"""
    assert page.call(script, engine) == [True, True, True, 7, None, 0, True]


def test_ids(page, engine, pretrained):
    tokenizer = pretrained[1]
    text = "Hear \U0001f600 \u00e9, \ufffd\n"
    ids, back, refused = page.call(
        "const e = engines[a]; const ids = e.encode(b); return [ids, e.decode(ids), e.vocabulary.length]", engine, text
    )
    assert ids == tokenizer.encode(text).tolist() and back == tokenizer.decode(ids) and refused == len(tokenizer)
    assert page.call("return engines[a].encode('\\ud83d')", engine) == [tokenizer.unknown]
    assert page.call("return engines[a].read([0, 66])", engine) == "no such id"


CASES = [("", 1000, {"seed": seed, "temperature": 0.8}) for seed in (0, 1, 2, 2**53 + 1, 2**64 - 1)] + [
    ("ROMEO:\nO, ", 200, {"seed": 2, "temperature": 1.0, "top_k": 5}),
    ("\u00e9", 200, {"seed": 3, "temperature": 1.3, "top_p": 0.9}),
    ("", 200, {"seed": 4, "sample": 3, "temperature": 1.0, "top_k": 30, "top_p": 0.97, "min_p": 0.01}),
    ("KING", 200, {"seed": 5, "temperature": 0.0}),
    ("KING", 1000, {"seed": 6, "temperature": 0.9, "stop": ["\n\n", "and "]}),
]


@pytest.mark.parametrize(("prompt", "chars", "options"), CASES, ids=range(len(CASES)))
def test_the_text_is_the_one_of_generate(page, engine, pretrained, prompt, chars, options):
    model, tokenizer = pretrained
    text = "".join(generate(Packed(model, "bfloat16"), tokenizer, prompt, chars, **options))
    stops = options.get("stop", [])
    script = """
      const engine = engines[a];
      const position = b ? engine.read(engine.encode(b)).position : engine.start();
      const options = { ...c, seed: BigInt(d), chars: e };
      return [...writeText(engine, position, options)].map((piece) => piece.text).join("")"""
    assert page.call(script, engine, prompt, options | {"stops": stops}, str(options["seed"]), chars) == text


@pytest.mark.parametrize(("seed", "sample"), [(0, 0), (1, 7), (2**64 - 1, 999_999), (2**53 + 1, 3)])
def test_random_numbers_are_those_of_numpy(page, seed, sample):
    for drawn in (0, 3, 4, 9_999_999):
        twins = RandomStreams(seed, range(sample, sample + 1), [drawn])
        script = "const r = new RandomStream(BigInt(a), b, c); return Array.from({length: 9}, () => r.random())"
        assert page.call(script, str(seed), sample, drawn) == [twins.draw()[0, 0] for _ in range(9)]


def test_filters_and_choices(page):
    """Random logits with ties, under all filters."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, 12)).astype(np.float32).round(1)
    uniform = random.random(60)
    uniform[:3] = 0, 1 - 2**-53, 0.5
    grid = itertools.product((0.0, 0.3, 1.0, 1e-320), (0, 1, 4, 12, 99), (1.0, 0.9, 1e-9), (0.0, 0.2, 1.0))
    options = [dict(zip(("temperature", "top_k", "top_p", "min_p"), values, strict=True)) for values in grid]
    script = "return c.map((options) => a.map((row, i) => choose(Float32Array.from(row), b[i], options)))"
    got = page.call(script, logits.tolist(), uniform.tolist(), options)
    assert got == [choose(logits, uniform, SamplingOptions(**each)).tolist() for each in options]


def test_stop_strings(page):
    pieces = ["".join(letters) for n in range(5) for letters in itertools.product("ab", repeat=n)]
    cases = [(text, stops) for text in pieces for stops in (["a"], ["ab", "bb"], ["aba"], ["bab", "aabb", "bb"])]
    got = page.call("return a.map(([text, stops]) => findStop(text, stops)).map((f) => [f.ready, f.stopped])", cases)
    assert got == [[ready, end > 0] for ready, end in (find_stop(*case) for case in cases)]


@pytest.mark.parametrize("part", ["header", "module", "image", "checksum"])
def test_a_damaged_block_is_refused(page, part):
    damaged = make_block(make(vocabulary=30), TOKENIZER)
    value = damaged[part]
    half = len(value) // 2 if part != "checksum" else 0
    damaged[part] = (
        value ^ 1 if part == "checksum" else value[:half] + ("A" if value[half] != "A" else "B") + value[half + 1 :]
    )
    message = "The model in this page is damaged: its checksum differs. Get the page again."
    assert page.call("await Engine.create(a)", json.loads(json.dumps(damaged))) == message


def test_a_browser_that_cannot_run_it(page):
    for lacking in ("WebAssembly.validate = () => false", "WebAssembly = undefined"):
        script = f"const [kept, validate] = [WebAssembly, WebAssembly.validate]; {lacking};"
        script += "try { await Engine.create(a) } finally { WebAssembly = kept; WebAssembly.validate = validate }"
        assert page.call(script, {}).startswith("This browser cannot run the model: it has no WebAssembly with SIMD.")
