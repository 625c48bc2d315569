"""Pseudo-labels of a data set from the heads of a trained network, and how good they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from panolib.data import photometry
from panolib.data.samples import Sample
from panolib.inference.predict import one_by_one
from panolib.labels import VOID, LabelSet, merged_ids
from panolib.metrics.averages import mean_of_defined, ratio
from panolib.models.geometry import placement_of
from panolib.related.realtime.adversarial import probabilities
from panolib.related.realtime.layered_pseudo_labels import RULES, select_labels, vote
from panolib.training.semantic import head_logits

LAYERS = (1, 2, 3)  # the main head; with the finer map of the context path; with the coarser one too
SWEEP = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # constant thresholds that are compared


def votes(
    model: nn.Module, dataset: Sequence[Sample], layers: Sequence[int], *, label: str = ""
) -> dict[int, tuple[list[np.ndarray], list[np.ndarray]]]:
    """{1, 2 or 3 heads: what they say of every image}, labels uint8 [H, W] and confidence float32 [H, W]."""
    found: dict[int, tuple[list, list]] = {n: ([], []) for n in layers}
    device = next(model.parameters()).device
    model.eval()
    for sample in one_by_one(dataset, label):
        image = photometry.network_input(sample).to(device)
        with torch.inference_mode():
            outputs = head_logits(model, image)
        size, placement = image.shape[-2:], placement_of(model)
        heads = [probabilities(logits.float(), size, placement) for logits in outputs[: max(layers)]]
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

    `found` is what `votes` returns; `truth`, uint8 [H, W], has the classes of `scored_as`, into which
    predictions are merged; `threshold` is the constant, or the cap of the medians, and the constants of
    `SWEEP` are tried beside it.

    The rows have "layers", "rule", "threshold", "coverage" (share of the pixels with truth), "accuracy" (of
    the covered ones, NaN if there is none), "class_coverage" (mean over the classes that are there),
    "classes" (number that is labelled at all).
    """
    merged = np.full(256, VOID, np.uint8)
    merged[: label_set.n_classes] = merged_ids(label_set, scored_as)
    cases = [("constant", value) for value in sorted({*SWEEP, threshold})]
    cases += [(rule, threshold) for rule in RULES if rule != "constant"]
    rows = []
    for layers, (labels, confidence) in found.items():
        for rule, value in cases:
            kept = select_labels(labels, confidence, label_set.n_classes, rule=rule, threshold=value)
            counts = np.zeros((3, 256), np.int64)  # pixels of every class: all, covered, right
            labelled = np.zeros(256, np.int64)
            for image, real in zip(kept, truth, strict=True):
                image, known = merged[image], real != VOID
                labelled += np.bincount(image.ravel(), minlength=256)
                for row, which in zip(counts, (known, known & (image != VOID), known & (image == real))):
                    row += np.bincount(real[which], minlength=256)
            pixels, covered, right = counts.sum(1)
            rows.append({
                "layers": layers, "rule": rule, "threshold": value,
                "coverage": float(ratio(covered, pixels)), "accuracy": float(ratio(right, covered)),
                "class_coverage": mean_of_defined(ratio(counts[1], counts[0])),
                "classes": int((labelled[:VOID] > 0).sum()),
            })  # fmt: skip
    return rows
