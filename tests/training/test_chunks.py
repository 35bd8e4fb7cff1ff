"""trainer.chunk: the gradient through a whole context, computed in chunks, is that of the whole."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from lm.config.options import ModelConfig
from lm.config.resolve import CHUNKABLE, parse
from lm.corpora.copying import IGNORED
from lm.files import UserError
from lm.model import LanguageModel
from lm.runs.folder import Run
from lm.runs.load import load
from lm.training.chunks import chunked_loss
from lm.training.loss import windowed_loss
from tests.training.conftest import rows

V = 9


def make(mixer: str = "mingru", **options) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(V, ModelConfig(mixer, width=16, layers=2, residual_init=1.0, **options))
    torch.nn.init.normal_(model.head.weight)
    return model.train()


def batch(T: int, B: int = 2):
    torch.manual_seed(1)
    return torch.randint(V, (B, T)), torch.randint(V, (B, T))


def gradients(model: LanguageModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def assert_close(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], tolerance: float) -> None:
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-12, name


@pytest.mark.parametrize("mixer", CHUNKABLE)
@pytest.mark.parametrize(("T", "chunk"), [(16_384, 4096), (257, 64), (63, 1), (64, 64), (10, 100)])
def test_chunks_have_the_gradient_of_the_whole(mixer, T, chunk):
    model, (x, y) = make(mixer), batch(T, 1 if T > 1000 else 2)
    logits, end = model(x)
    whole = cross_entropy(logits.flatten(0, 1), y.flatten())
    loss, state = chunked_loss(model, x, y, None, chunk)
    torch.testing.assert_close(loss, whole, rtol=1e-5, atol=0)
    for layer, expected in zip(state, end, strict=True):
        for got, want in zip(layer, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
            assert not got.requires_grad
    assert_close(gradients(model, loss), gradients(model, whole), 1e-5)


def test_the_gradient_reaches_the_first_chunk_from_the_last():
    """Only the last target is scored, and the first character matters."""
    model, (x, y) = make("mingru"), batch(32)
    y[:, :-1] = IGNORED
    loss, _ = chunked_loss(model, x, y, None, 8)
    got = gradients(model, 3 * loss)
    logits, _ = model(x)
    wanted = gradients(model, 3 * cross_entropy(logits[:, -1], y[:, -1]))
    assert_close(got, wanted, 1e-5)
    first = set(x[:, :8].flatten().tolist()) - set(x[:, 8:].flatten().tolist())
    assert not first or got["embedding.weight"][list(first)].abs().sum() > 0


def test_a_carried_state_is_the_start():
    model, (x, y) = make("minlstm"), batch(60)
    _, middle = model(x[:, :20])
    start = tuple(tuple(t.detach() for t in layer) for layer in middle)
    loss, _ = chunked_loss(model, x[:, 20:], y[:, 20:], start, 16)
    whole = cross_entropy(model(x[:, 20:], start)[0].flatten(0, 1), y[:, 20:].flatten())
    torch.testing.assert_close(loss, whole)
    assert_close(gradients(model, loss), gradients(model, whole), 1e-5)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_dropout_is_that_of_the_forward_pass(bfloat16):
    """The same chunks in one graph, with the same random numbers; the generator is left where forward has left it."""
    model, (x, y) = make("mingru", dropout=0.5), batch(60)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        torch.manual_seed(5)
        state, total = None, 0.0
        for part_x, part_y in zip(x.split(16, 1), y.split(16, 1), strict=True):
            logits, state = model(part_x, state)
            total = total + cross_entropy(logits.float().flatten(0, 1), part_y.flatten(), reduction="sum")
        wanted = total / y.numel()
        after = torch.get_rng_state()
        torch.manual_seed(5)
        loss, _ = chunked_loss(model, x, y, None, 16)
    torch.testing.assert_close(loss, wanted)
    assert torch.equal(torch.get_rng_state(), after)
    assert_close(gradients(model, loss), gradients(model, wanted), 2e-2 if bfloat16 else 1e-5)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_run_in_chunks_ends_as_one_without(run_train, corpus):
    """Validation in chunks too, its windows longer than a chunk."""
    options = ["--trainer.max_steps", "8", "--eval.every", "4", "--log.every", "1", "--data.context", "100"]
    whole, cut = run_train("whole", *options), run_train("cut", *options, "--trainer.chunk", "32")
    for a, b in zip(rows(whole), rows(cut), strict=True):
        for name in {"train/loss", "val/loss", "val/loss_streaming", "val/perplexity"} & a.keys():
            assert a[name] == pytest.approx(b[name], rel=1e-4), name


def test_states_at_the_borders_are_all_that_is_kept():
    """All in one storage for each tensor of a state: a view of the chunk's tensors would keep those, and small blocks
    between large ones would keep the allocator from using the large ones again."""
    model, (x, y) = make("mamba"), batch(64 * 8, 1)
    loss, _ = chunked_loss(model, x, y, None, 64)
    borders = [state for state, _ in loss.grad_fn.borders]
    assert len(borders) == 8 and borders[0] is None
    for tensors in zip(*((t for layer in state for t in layer) for state in borders[1:]), strict=True):
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
        assert tensors[0].untyped_storage().nbytes() == 8 * tensors[0].nbytes


@pytest.mark.parametrize("mixer", ["attention", "gru", "lstm", "s4d", "[mingru, attention, mingru]"])
def test_others_are_refused(mixer):
    with pytest.raises(UserError, match=r"trainer\.chunk: (attention|gru|lstm|s4d) cannot pass its gradient on"):
        parse(["--model.mixer", mixer, "--trainer.chunk", "64"])


def test_long_windows_are_scored_in_pieces(monkeypatch, run_train):
    run = run_train("a", "--trainer.max_steps", "2")
    model, _ = load(run)
    ids = torch.randint(V, (500,)).numpy()
    whole = windowed_loss(model, ids, 499)
    monkeypatch.setattr("lm.training.loss.CHUNK", 77)
    assert windowed_loss(model, ids, 499) == pytest.approx(whole, rel=1e-6) and Run(run).summary()["step"] == 2
