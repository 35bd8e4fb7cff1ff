"""What cells do and what models predict, against models that step."""

import math

import numpy as np
import pytest
import torch

from lm.analysis.inspect import traces as module
from lm.analysis.inspect.traces import predict, traces
from lm.config.options import MixerOptions, ModelConfig
from lm.model import LanguageModel

IDS = np.random.default_rng(0).integers(0, 13, 63).astype(np.uint16)


def make(mixer, **options) -> LanguageModel:
    """A small model in which no weight is zero or one."""
    torch.manual_seed(1)
    model = LanguageModel(13, ModelConfig(mixer=mixer, width=16, layers=2, options=MixerOptions(**options))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.mark.parametrize("chunk", [1, 17, 2048])
@pytest.mark.parametrize(
    ("mixer", "options"),
    [
        ("mingru", {}),
        ("minlstm", {"convolution": 0}),
        (["mingru", "minlstm"], {"expansion": 1.0}),
        ("mingru", {"gate_bias": 3.0}),
    ],
)
@torch.inference_mode()
def test_traces_are_what_steps_do(monkeypatch, mixer, options, chunk):
    """h is in the state of each step; z is how far h has moved from the state before towards the candidate."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    model = make(mixer, **options)
    found = list(traces(model, IDS))
    logits, z, h = (np.concatenate([getattr(trace, part) for trace in found]) for part in ("logits", "z", "h"))
    state, candidates = model.init_state(1), {}
    for number, block in enumerate(model.blocks):
        cell = block.mixer
        keep = lambda module, inputs, output, number=number: candidates.update({number: output})  # noqa: E731
        cell.projection.register_forward_hook(keep)
    for t, i in enumerate(IDS):
        before = torch.cat([layer[0] for layer in state], 1)[0].numpy()
        expected, state = model.step(torch.tensor([int(i)]), state)
        after = torch.cat([layer[0] for layer in state], 1)[0].numpy()
        np.testing.assert_allclose(logits[t], expected[0].numpy(), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(h[t], after, rtol=1e-4, atol=1e-5)
        c = np.concatenate([candidates[n][0].chunk(b.mixer.gates + 1)[-1].numpy() for n, b in enumerate(model.blocks)])
        g = np.where(c >= 0, c + 0.5, 1 / (1 + np.exp(-c)))
        np.testing.assert_allclose(before + z[t] * (g - before), after, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mixer", ["mingru", "attention", "gru"])
@pytest.mark.parametrize("chunk", [16, 2048])
@torch.inference_mode()
def test_predictions(monkeypatch, mixer, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    model = make(mixer)
    found = predict(model, IDS)
    probabilities = model(torch.from_numpy(IDS.astype(np.int64))[None])[0][0].softmax(-1).numpy()
    assert found.ids.shape == found.probabilities.shape == (63, 10) and found.bits.shape == (63,)
    for t, row in enumerate(probabilities):
        np.testing.assert_allclose(found.probabilities[t], np.sort(row)[::-1][:10], rtol=1e-3)
        np.testing.assert_allclose(row[found.ids[t]], found.probabilities[t], rtol=1e-3)
    want = [0, *(-math.log2(probabilities[t - 1, IDS[t]]) for t in range(1, 63))]
    np.testing.assert_allclose(found.bits, want, rtol=1e-3, atol=1e-4)


def test_wide_models_are_read_in_short_pieces(monkeypatch):
    model = make("mingru")
    monkeypatch.setattr(module, "FLOATS", 64 * 10 + 5)
    assert [len(trace.h) for trace in traces(model, IDS)] == [10] * 6 + [3]
    monkeypatch.setattr(module, "FLOATS", 1)
    assert len(next(traces(model, IDS)).h) == 1
    assert not model.blocks[0].mixer.projection._forward_hooks


def test_one_character_and_fewer_ids_than_are_kept():
    model = LanguageModel(3, ModelConfig(mixer="mingru", width=8, layers=1)).eval()
    found = predict(model, np.array([1], dtype=np.uint16))
    assert found.ids.shape == (1, 3) and found.bits.tolist() == [0]
