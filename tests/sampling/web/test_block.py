"""The memory of a model in a page, read as the kernel reads it."""

import base64
import ctypes
import json
import zlib

import numpy as np
import pytest
import torch

from lm.corpora.tokenizer import ByteTokenizer, CharTokenizer
from lm.files import UserError
from lm.sampling.layout import WASM32
from lm.sampling.packed import ROWS
from lm.sampling.web import block
from lm.sampling.web.block import make_block
from lm.sampling.web.build import BASE, MODULE
from tests.sampling.helpers import TOKENIZER
from tests.sampling.test_packed import make


def read(model, weights="float32", tokenizer=TOKENIZER):
    """The header of a model's block and its image."""
    made = make_block(model, tokenizer, weights)
    assert base64.b64decode(made["module"]) == MODULE.read_bytes()
    assert made["checksum"] == zlib.crc32((made["header"] + made["module"] + made["image"]).encode())
    return json.loads(made["header"]), base64.b64decode(made["image"])


def test_the_structures_are_where_the_header_says():
    header, image = read(make(vocabulary=30, width=32))
    _, layer_type, model_type = WASM32
    assert [ctypes.sizeof(kind) for kind in WASM32] == [32, 184, 96]  # as clang lays them out for wasm32
    model = model_type.from_buffer_copy(image, header["model"] - BASE)
    assert (model.type, model.vocabulary, model.width, model.layers) == (0, 30, 32, 2)
    layers = (layer_type * 2).from_buffer_copy(image, model.layer - BASE)
    assert [(layer.kind, layer.hidden, layer.taps) for layer in layers] == [(0, 64, 4)] * 2
    assert (layers[1].projection.N, layers[1].projection.K) == (128, 32)
    assert header["layers"] == [{"hidden": 64, "kind": "MinGRU"}] * 2


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
def test_a_matrix_in_blocks_of_eight_outputs(weights):
    """Weights that all precisions hold exactly."""
    model = make(vocabulary=11, width=32)
    with torch.no_grad():
        model.head.weight.copy_(torch.randint(-126, 127, model.head.weight.shape))
        model.head.weight[:, 0] = 127  # the scale of int8 is 1 then
    header, image = read(model, weights)
    head = WASM32[2].from_buffer_copy(image, header["model"] - BASE).head
    kind = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[weights]
    shape = {"float32": (2, 32, 8), "bfloat16": (2, 32, 4, 2), "int8": (2, 16, 4, 2, 2)}[weights]
    packed = np.frombuffer(image, kind, int(np.prod(shape)), head.weight - BASE).reshape(shape)
    if weights == "bfloat16":
        packed = (packed.astype(np.uint32) << 16).view(np.float32)
    for n in range(11):
        for k in range(32):
            place = {
                "float32": (k, n % 8),
                "bfloat16": (k, n % 4, n % 8 // 4),
                "int8": (k // 2, n % 4, k % 2, n % 8 // 4),
            }
            assert packed[n // 8][place[weights]] == model.head.weight[n, k]


def test_working_memory_follows_the_image_and_does_not_overlap():
    header, image = read(make("minlstm", convolution=3), "bfloat16")
    V, hidden = 65, [layer["hidden"] for layer in header["layers"]]
    sizes = [(header["state"], header["floats"]), (header["ids"], 2 * ROWS), (header["logits"], ROWS * V)]
    sizes += [(address, ROWS * n) for name in "hz" for address, n in zip(header[name], hidden, strict=True)]
    sizes += [(header["work"], ROWS * (2 * 48 + 3 * 96))]
    ends = BASE + len(image)
    for address, floats in sorted(sizes):
        assert address >= ends and address % 16 == 0
        ends = address + 4 * floats
    assert ends <= header["size"] < ends + 16
    assert header["floats"] == sum(n + 2 * 48 for n in hidden)
    tables = [
        np.frombuffer(image, np.uint32, n, at - BASE) for at, n in zip(header["pointers"], (4, 2, 2), strict=True)
    ]
    past = [header["state"] + 4 * n for n in (0, 96, 96 + 96, 96 + 96 + 96)]
    assert [table.tolist() for table in tables] == [past, header["h"], header["z"]]


def test_the_vocabulary_and_the_start():
    assert read(make(vocabulary=30))[0]["vocabulary"] == TOKENIZER.characters + "\ufffd"
    assert read(make(vocabulary=30))[0]["start"] == [0]
    assert read(make(vocabulary=5), tokenizer=CharTokenizer(" \nab"))[0]["start"] == [0]
    assert read(make(vocabulary=5), tokenizer=CharTokenizer("\t\nab"))[0]["start"] == [1]


def test_models_that_no_page_can_run(monkeypatch):
    with pytest.raises(UserError, match=r"^this model cannot run in a page: the mixer GRU has no native step$"):
        make_block(make("gru", vocabulary=30), TOKENIZER)
    with pytest.raises(UserError, match=r"^this model cannot run in a page: it reads bytes$"):
        make_block(make(vocabulary=257), ByteTokenizer())
    monkeypatch.setattr(block, "LARGEST", 200_000)
    with pytest.raises(UserError, match=r"^this model cannot run in a page: it takes [\d,]+ bytes, and a page has"):
        make_block(make(vocabulary=30), TOKENIZER)
