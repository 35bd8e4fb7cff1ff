"""The contenders that are not ours."""

import torch

from lm.bench import peers


def test_the_gpt_is_torchs():
    """Equal weights give the logits of torch's own pre-norm encoder with learned positions, as nanoGPT's does."""
    from torch import nn

    torch.manual_seed(0)
    model = peers.GPT(11, 2, 4, 32, 20)
    options = {"activation": "gelu", "batch_first": True, "norm_first": True, "bias": False}
    x = model.embedding.weight[torch.arange(9)][None] + model.position.weight[:9]
    mask = nn.Transformer.generate_square_subsequent_mask(9)
    for block in model.blocks:
        layer = nn.TransformerEncoderLayer(32, 4, 128, 0.0, **options)
        layer.self_attn.in_proj_weight, layer.self_attn.out_proj = block.query_key_value.weight, block.output
        layer.linear1, layer.linear2 = block.up, block.down
        layer.norm1, layer.norm2 = block.norm_attention, block.norm_mlp
        x = layer(x, src_mask=mask, is_causal=True)
    torch.testing.assert_close(model(torch.arange(9)[None]), model.head(model.norm(x))[:, -1:])


def test_backend_is_put_back(monkeypatch):
    import os

    monkeypatch.setenv("LM_BACKEND", "portable")
    with peers.backend("native"):
        assert os.environ["LM_BACKEND"] == "native"
    assert os.environ["LM_BACKEND"] == "portable"
