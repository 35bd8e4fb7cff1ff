"""Distillation: the averaged probabilities of trained models, from which another model learns besides the text.

They are computed once for the training part of a text, which the teachers read as one sequence, and kept in the cache
of corpora.
"""

import hashlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lm.config.options import Config
from lm.corpora import cache
from lm.corpora.batches import stream
from lm.corpora.copying import Copying
from lm.corpora.corpus import Corpus
from lm.files import UserError, atomic_open, atomic_write, cache_folder, read_text
from lm.training.processes import is_first_process, print_status

if TYPE_CHECKING:
    from lm.model import LanguageModel


def add_teachers(corpus: Corpus | Copying, config: Config) -> Corpus | Copying:
    """The corpus with the predictions of `distill.teachers`; as it is if there are none.

    Raises:
        UserError: a teacher cannot be loaded, has another vocabulary, or may have seen the text of the validation.
    """
    if not config.distill.teachers:
        return corpus
    if isinstance(corpus, Copying):
        raise UserError(f"distill.teachers: {config.data.corpus} has no text for teachers to read")
    size = len(corpus.train) * len(corpus.tokenizer) * 2
    if size > cache.LARGEST:
        raise UserError(f"distill.teachers: their probabilities would take {size / 2**30:,.0f} GiB, and 8 are the most")
    teachers = [_load_teacher(name, corpus, config) for name in config.distill.teachers]
    source = f"predictions for {config.data.corpus} of {', '.join(config.distill.teachers)}"
    return replace(corpus, teacher=_probabilities(teachers, corpus, source))


def _load_teacher(name: str, corpus: Corpus, config: Config) -> "LanguageModel":
    from lm.runs.load import load_with_config

    model, tokenizer, about = load_with_config(name)
    if tokenizer.characters != corpus.tokenizer.characters:
        raise UserError(f"distill.teachers: {name} has another vocabulary than data.corpus {config.data.corpus}")
    if (about.data.corpus, about.data.tuning) != (config.data.corpus, config.data.tuning):
        text = f"{about.data.corpus}{' with data.tuning' if about.data.tuning else ''}"
        raise UserError(f"distill.teachers: {name} was trained on {text}, which may hold what this run validates on")
    return model


def _probabilities(teachers: "list[LanguageModel]", corpus: Corpus, source: str) -> np.ndarray:
    """The averaged probabilities (n, V), float16, memory-mapped from the cache, where they are put if they are not."""
    from lm.runs.load import digest_of

    shape = len(corpus.train), len(corpus.tokenizer)
    weights = sorted(digest_of(teacher.state_dict()) for teacher in teachers)
    key = hashlib.sha256(repr((cache.VERSION, corpus.digest, shape, weights)).encode()).hexdigest()[:24]
    path = cache_folder() / f"teachers-{key}.npy"
    if (found := _read(path, shape)) is None:
        if is_first_process():
            print_status(f"teachers {len(teachers)}, which read {shape[0]:,} characters")
        found = predict(teachers, corpus.train)
        with suppress(OSError, UserError):  # without a cache, the next run is only slower
            cache_folder().mkdir(parents=True, exist_ok=True)
            with atomic_open(path) as file:
                np.save(file, found)
            atomic_write(path.with_suffix(".json"), json.dumps({"source": source, "digest": _digest(found)}))
            cache.evict()
    return found


def _read(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        about = json.loads(read_text(path.with_suffix(".json")))
        fits = found.shape == shape and found.dtype == np.float16 and _digest(found) == about["digest"]
    except Exception:  # numpy and json raise many types for a damaged file
        return None
    return found if fits else None


def _digest(probabilities: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(probabilities).data).hexdigest()


def predict(teachers: "list[LanguageModel]", ids: np.ndarray) -> np.ndarray:
    """Averaged probabilities (n, V), float16, of the id after each of ids (n,), given all before; 0 after the last."""
    import torch

    from lm.model import Ensemble

    ensemble, state = Ensemble(teachers), None
    found = np.zeros((len(ids), teachers[0].head.out_features), dtype=np.float16)
    place = 0
    with torch.inference_mode():
        for x, _ in stream(ids):
            logits, state = ensemble(torch.from_numpy(x), state)
            found[place : place + x.shape[1]] = logits[0].exp().half().numpy()
            place += x.shape[1]
    return found
