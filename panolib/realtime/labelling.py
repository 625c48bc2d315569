"""Pseudo-labels of a data set from the heads of a trained network, and how good they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from panolib.data import views
from panolib.data.samples import Sample
from panolib.labels import VOID, LabelSet, merged_ids
from panolib.layered_pseudo_labels import RULES, select_labels, vote
from panolib.training.adversarial import probabilities
from panolib.training.semantic import head_logits, to_image

LAYERS = (1, 2, 3)  # the main head; with the finer map of the context path; with the coarser one too


def votes(
    model: nn.Module, dataset: Sequence[Sample], layers: Sequence[int], *, label: str = ""
) -> dict[int, tuple[list[np.ndarray], list[np.ndarray]]]:
    """What 1, 2 or 3 heads say of every image.

    Returns
    -------
    dict of number of heads to (labels, confidence)
        Lists of uint8 and float32 arrays [H, W], one for every image.
    """
    found: dict[int, tuple[list, list]] = {n: ([], []) for n in layers}
    for heads in _head_probabilities(model, dataset, label):
        for n, (labels, confidence) in found.items():
            winner, sure = vote(heads[:n])
            labels.append(winner[0].to(torch.uint8).cpu().numpy())
            confidence.append(sure[0].float().cpu().numpy())
    return found


def quality_rows(
    found: dict[int, tuple[list[np.ndarray], list[np.ndarray]]],
    truth: Sequence[np.ndarray],
    label_set: LabelSet,
    scored_as: LabelSet,
    *,
    threshold: float,
) -> list[dict]:
    """Coverage and accuracy of pseudo-labels by number of layers and rule, over the pixels of all images.

    Parameters
    ----------
    found : what `votes` returns
    truth : sequence of uint8 [H, W]
        In the classes of `scored_as`, into which predictions are merged.
    threshold : float
        The constant, or the cap of the medians.

    Returns
    -------
    list of dict
        "layers", "rule", "coverage" (share of the pixels with truth), "accuracy" (of the covered ones, NaN if
        there is none), "class_coverage" (mean over the classes that are there), "classes" (number that is
        labelled at all).
    """
    merged = np.full(256, VOID, np.uint8)
    merged[: label_set.n_classes] = merged_ids(label_set, scored_as)
    n, rows = scored_as.n_classes, []
    for layers, (labels, confidence) in found.items():
        for rule in RULES:
            kept = select_labels(labels, confidence, label_set.n_classes, rule=rule, threshold=threshold)
            counts = np.zeros((n, 3), np.int64)  # pixels of every class: all, covered, right
            for image, real in zip(kept, truth, strict=True):
                image, known = merged[image], real != VOID
                for column, which in enumerate((known, known & (image != VOID), known & (image == real))):
                    counts[:, column] += np.bincount(real[which], minlength=n)[:n]
            pixels, covered, right = counts.sum(0)
            present = counts[:, 0] > 0
            labelled = set().union(*(np.unique(image).tolist() for image in kept)) - {VOID}
            rows.append({
                "layers": layers, "rule": rule,
                "coverage": covered / pixels if pixels else float("nan"),
                "accuracy": right / covered if covered else float("nan"),
                "class_coverage": float((counts[present, 1] / counts[present, 0]).mean()) if pixels
                else float("nan"),
                "classes": len(labelled),
            })  # fmt: skip
    return rows


def _head_probabilities(
    model: nn.Module, dataset: Sequence[Sample], label: str
) -> Iterator[tuple[Tensor, ...]]:
    """Probabilities [1, C, H, W] of every head at the size of each image."""
    device = next(model.parameters()).device
    model.eval()
    for index in tqdm(range(len(dataset)), desc=label or "labels", leave=False, disable=not label):
        image = views.normalise(to_image(dataset[index])[None]).to(device)
        with torch.inference_mode():
            outputs = head_logits(model, image)
        yield tuple(probabilities(logits.float(), image.shape[-2:]) for logits in outputs)
