"""Sampling filters and the choice of the next id: pure functions of logits (N, V).

They use numpy, where one row takes microseconds.
"""

import math
from dataclasses import dataclass

import numpy as np


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k largest logits of each row, ties included; the others become -inf. 0 keeps all."""
    if not 0 < k < logits.shape[1]:
        return logits
    smallest = np.partition(logits, -k, axis=1)[:, -k, None]
    return np.where(logits < smallest, -np.inf, logits)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the fewest most probable ids whose probabilities sum to at least p (nucleus sampling, arXiv 1904.09751)."""
    if p >= 1:
        return logits
    index = np.argsort(-logits, axis=1, kind="stable")
    ordered = np.take_along_axis(logits, index, 1)
    weight = np.exp(ordered - ordered[:, :1])
    cumulative = weight.cumsum(axis=1)
    excluded = np.empty(logits.shape, dtype=bool)
    # `cumulative - weight` is the sum over the more probable ids.
    np.put_along_axis(excluded, index, cumulative - weight >= p * cumulative[:, -1:], 1)
    return np.where(excluded, -np.inf, logits)


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the ids that are at least p times as probable as the most probable one (arXiv 2407.01082); 0 keeps all."""
    if p <= 0:
        return logits
    return np.where(logits < logits.max(axis=1, keepdims=True) + math.log(p), -np.inf, logits)


@dataclass
class SamplingOptions:
    """How the next id is chosen: temperature, then top-k, then top-p, then min-p. By default all ids are kept."""

    temperature: float = 1.0
    """0 takes the most probable id"""
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


def choose(logits: np.ndarray, uniform: np.ndarray, options: SamplingOptions) -> np.ndarray:
    """Choose one id per row: logits (N, V) and random numbers in [0, 1), uniform (N,) -> ids (N,).

    The id is the first one whose cumulative probability exceeds the row's random number. Rows are independent.
    """
    if options.temperature == 0:
        return logits.argmax(axis=1)
    scaled = logits.astype(np.float64)
    scaled -= scaled.max(axis=1, keepdims=True)  # before the division, which may overflow at a tiny temperature
    with np.errstate(over="ignore"):
        scaled /= options.temperature
    kept = min_p(top_p(top_k(scaled, options.top_k), options.top_p), options.min_p)
    cumulative = np.exp(kept).cumsum(axis=1)
    # The number is scaled by the sum, so that rounding cannot go past the last id.
    return (cumulative <= (uniform * cumulative[:, -1])[:, None]).sum(axis=1)


def log_probability(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Natural log-probabilities (N,) of ids (N,) under logits (N, V), without filters and at temperature 1."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits[np.arange(len(ids)), ids] - np.log(np.exp(logits).sum(axis=1))
