"""Pseudo-labels made once from a trained network: several heads that vote, thresholds per class, quality.

Labels and confidence are arrays of one image or of a whole set; a class whose pixels are all
below its threshold, or that is not there at all, is simply not labelled.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data import photometry
from panolib.data.label_maps import as_ids
from panolib.data.samples import Sample
from panolib.inference.predict import one_by_one
from panolib.labels import VOID, LabelSet, merged_ids
from panolib.metrics.averages import mean_of_defined, ratio
from panolib.models.geometry import placement_of, upsample_to
from panolib.training.semantic import head_logits

LAYERS = (1, 2, 3)  # the main head; with the finer map of the context path; with the coarser one too
SWEEP = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)  # constant thresholds that are compared
RULES = ("constant", "set", "image", "reference")


def vote(probabilities: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Class of every pixel by the vote of several heads, each with its confidence.

    Every head votes for its best class with the probability of it; the class with the largest sum wins, and
    among equal ones that of the first head. With one head this is the usual argmax.

    Parameters
    ----------
    probabilities : sequence of float Tensor [B, C, H, W]
        One a head, at least one.

    Returns
    -------
    labels : int64 Tensor [B, H, W]
    confidence : float Tensor [B, H, W]
        Mean probability of the winner over the heads that voted for it.

    References
    ----------
    Bartoletti et al., section III.D (which leaves the details open).
    """
    confidence, labels = (torch.stack(parts) for parts in zip(*(head.max(1) for head in probabilities)))
    agreeing = (labels[:, None] == labels[None]).to(confidence.dtype)  # [heads, heads, B, H, W]
    total = torch.einsum("ij...,j...->i...", agreeing, confidence)
    winner = total.argmax(0, keepdim=True)
    mean = total / agreeing.sum(1)
    return labels.gather(0, winner)[0], mean.gather(0, winner)[0]


def median_thresholds(
    labels: np.ndarray, confidence: np.ndarray, n_classes: int, *, cap: float = 0.9
) -> np.ndarray:
    """Threshold of every class, float64 [n_classes]: the median confidence of its pixels, at most `cap`.

    `labels` and `confidence` are those of an image or of a whole set, of any shape. `cap` for a class that is
    never predicted.

    References
    ----------
    Li et al. 2019, arXiv:1904.10620 (BDL), over the whole set.
    """
    labels, confidence = _classes(labels, n_classes).ravel(), np.asarray(confidence).ravel()
    thresholds = np.full(n_classes, cap)
    for class_id in np.unique(labels):
        thresholds[class_id] = min(cap, np.median(confidence[labels == class_id]))
    return thresholds


def reference_thresholds(
    labels: np.ndarray, confidence: np.ndarray, n_classes: int, *, cap: float = 0.9
) -> np.ndarray:
    """Thresholds of one image as the reference code computes them, float64 [n_classes], for comparison only.

    For a class that is not there it appends 0, and then the median of the empty set as well, which is NaN and
    keeps every pixel. All later classes use the threshold of a neighbour.
    """
    labels, confidence = _classes(labels, n_classes).ravel(), np.asarray(confidence).ravel()
    thresholds: list[float] = []
    for class_id in range(n_classes):
        own = confidence[labels == class_id]
        thresholds += [min(cap, float(np.median(own)))] if own.size else [0.0, np.nan]
    return np.array(thresholds[:n_classes])


def keep_confident(labels: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """uint8 labels, `VOID` where the confidence is below the threshold of the class (NaN: never)."""
    labels = _classes(labels, len(thresholds))
    return np.where(np.asarray(confidence) < thresholds[labels], VOID, labels).astype(np.uint8)


def _classes(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Labels of any integer type; raises ValueError for one that is none of the classes."""
    return as_ids(labels, "labels", highest=n_classes - 1).numpy()


def select_labels(
    labels: Sequence[np.ndarray],
    confidence: Sequence[np.ndarray],
    n_classes: int,
    *,
    rule: str,
    threshold: float = 0.9,
) -> list[np.ndarray]:
    """Pseudo-labels of a set of images, uint8 [H, W], from what `vote` says of each.

    Parameters
    ----------
    labels, confidence : sequence of arrays [H, W]
    rule : {"constant", "set", "image", "reference"}
        One threshold for all classes; the median of every class over all images; over each image; the same
        with the bug of the reference.
    threshold : float
        The constant, or the cap of the medians.
    """
    if rule not in RULES:
        raise ValueError(f"rule of pseudo-labels is {rule!r}, expected one of {RULES}")
    of_image = {"image": median_thresholds, "reference": reference_thresholds}.get(rule)
    if of_image is not None:
        every = [of_image(*image, n_classes, cap=threshold) for image in zip(labels, confidence)]
    elif rule == "set" and len(labels):
        joined = (np.concatenate([part.ravel() for part in parts]) for parts in (labels, confidence))
        every = [median_thresholds(*joined, n_classes, cap=threshold)] * len(labels)
    else:
        every = [np.full(n_classes, threshold)] * len(labels)
    return [keep_confident(*image) for image in zip(labels, confidence, every, strict=True)]


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
        maps = (upsample_to(logits.float(), size, placement) for logits in outputs[: max(layers)])
        heads = [logits.softmax(1) for logits in maps]
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
