"""A model as a block of data that engine.js runs: the WebAssembly module and the image of its memory.

The image is what the kernel reads, weights and structures with their addresses, so that JavaScript copies bytes and
calls a function, and knows nothing of the architecture. Working memory follows the image; the header has its addresses.
"""

import base64
import json
import zlib
from typing import Any

import torch
from torch import Tensor

from lm.corpora.tokenizer import UNKNOWN, CharTokenizer
from lm.files import UserError
from lm.model import LanguageModel
from lm.sampling.layout import WASM32, Layout
from lm.sampling.packed import ROWS, UnsupportedError, flat, require_supported
from lm.sampling.text import start_ids
from lm.sampling.web.build import BASE, MODULE

LANES = 4
"""Floats in a vector of WebAssembly."""
ALIGNMENT = 16
LARGEST = 1 << 31
"""Bytes of memory that every browser can address."""


def make_block(model: LanguageModel, tokenizer: CharTokenizer, weights: str = "bfloat16") -> dict[str, Any]:
    """The block of a model, as data for `Engine.create` of engine.js.

    Args:
        weights: see `lm.sampling.packed.Packed`.

    Returns:
        `header`, JSON text; `module` and `image`, base64; `checksum`, the CRC-32 of the three texts together.

    Raises:
        UserError: the model has mixers that packed.c does not know, reads bytes, or is too large for a browser.
    """
    try:
        require_supported(model)
        if tokenizer.unit != "character":
            raise UnsupportedError(f"it reads {tokenizer.unit}s")
    except UnsupportedError as error:
        raise UserError(f"this model cannot run in a page: {error}") from None
    image = _Image()
    layout = Layout(model, weights, LANES, WASM32, image.keep)
    header = {
        "vocabulary": tokenizer.characters + UNKNOWN,
        "start": start_ids(tokenizer, "").tolist(),
        "layers": [{"hidden": block.mixer.hidden, "kind": type(block.mixer).__name__} for block in model.blocks],
        "weights": weights,
        "base": BASE,
        "model": layout.address,
        **_working_memory(image, layout, model),
    }
    texts = json.dumps(header), _base64(MODULE.read_bytes()), _base64(image.data)
    return dict(zip(("header", "module", "image"), texts, strict=True)) | {
        "checksum": zlib.crc32("".join(texts).encode())
    }


class _Image:
    """What is copied into the memory of the module, from `BASE` on."""

    def __init__(self) -> None:
        self.data = bytearray()

    @property
    def end(self) -> int:
        return BASE + len(self.data)

    def keep(self, x: Tensor) -> int:
        """Append the bytes of a tensor, and return their address."""
        address = self.end
        self.data += x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        self.data += bytes(-len(self.data) % ALIGNMENT)
        return address


def _working_memory(image: _Image, layout: Layout, model: LanguageModel) -> dict[str, Any]:
    """Complete the image by a table of pointers, and divide the memory behind it for the arguments of `trace`."""
    parts = [part.numel() for part in flat(model.init_state(1))]
    layers, traced = len(layout.hidden), [ROWS * hidden for hidden in layout.hidden]
    table = torch.zeros(len(parts) + 2 * layers, dtype=torch.int32)
    free = image.end + -(-4 * len(table) // ALIGNMENT) * ALIGNMENT

    def reserve(floats: int) -> int:
        nonlocal free
        address, free = free, free + -(-4 * floats // ALIGNMENT) * ALIGNMENT
        return address

    state = reserve(sum(parts))
    ids, logits, work = (reserve(ROWS * n) for n in (2, model.embedding.num_embeddings, layout.work))
    states, gates = [reserve(n) for n in traced], [reserve(n) for n in traced]
    if free >= LARGEST:
        raise UserError(f"this model cannot run in a page: it takes {free:,} bytes, and a page has {LARGEST:,}")
    offsets = [state + 4 * sum(parts[:i]) for i in range(len(parts))]
    table[:] = torch.tensor([*offsets, *states, *gates], dtype=torch.int32)
    address = image.keep(table)
    pointers = [address, address + 4 * len(parts), address + 4 * (len(parts) + layers)]
    return {
        "rows": ROWS, "size": free, "pointers": pointers, "state": state, "floats": sum(parts),
        "ids": ids, "logits": logits, "work": work, "h": states, "z": gates,
    }  # fmt: skip


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode()
