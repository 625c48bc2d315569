"""Scores and pictures of a semantic network while it trains (thesis ch. 10 figs. 1 to 3).

Labels are read here only to compare with; nothing that is scored comes back to the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data.images import resize_labels
from panolib.data.photometry import as_unit_float, network_input, to_image
from panolib.data.samples import Sample
from panolib.inference.predict import predict_semantic
from panolib.labels import LabelSet
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.training.loop import Job
from panolib.training.pseudo_labels import pseudo_label_quality
from panolib.training.specs import Monitor

N_PICTURES = 2  # images whose labels are kept as pictures

PseudoLabels = Callable[[Tensor], Tensor]  # float image [1, 3, H, W] in [0, 1] -> train ids [1, h, w]


class SemanticMonitor:
    """Callable: iteration, network -> {column of the curves: score}, empty between two scorings.

    Scored are the start, every `interval` iterations and the end; "iteration i" is the network after i
    steps. "miou <data set>" is the mean IoU over all classes of the label set that appear. With a function
    for pseudo-labels, "accuracy" is the share of the labelled pixels of the first data set that are right,
    and "label_coverage" the share of its pixels with a truth that get a label.

    Kept as pictures, for two images each: image, truth and first and last prediction of the last data set,
    and image, truth and every pseudo-label map of the first one.

    Without a monitor nothing is ever scored. `job` takes the pictures; `datasets` are those of
    `monitor.data`, in its order; `stop` is the number of iterations of the run. Raises ValueError if an image
    of a data set has no labels.
    """

    def __init__(
        self, monitor: Monitor | None, job: Job, datasets: Mapping[str, Sequence[Sample]],
        label_set: LabelSet, stop: int,
    ):  # fmt: skip
        self.monitor, self.job, self.label_set, self.stop = monitor, job, label_set, stop
        self.samples: dict[str, list[Sample]] = {}
        for name, dataset in datasets.items():
            samples = [dataset[i] for i in range(min(monitor.n_images, len(dataset)))]
            if any(sample.semantic is None for sample in samples):
                raise ValueError(f"{name} was opened without labels, expected them for the monitor")
            self.samples[name] = samples

    def __call__(
        self, iteration: int, network: nn.Module, pseudo_labels: PseudoLabels | None = None
    ) -> dict[str, float]:
        """Scores of one iteration. No weight, buffer, mode or random state is changed.

        Scores that do not exist (no labelled pixel) are left out.
        """
        if self.monitor is None or (iteration % self.monitor.interval and iteration != self.stop):
            return {}
        scores = {}
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            for name in self.samples:
                scores[f"miou {name}"] = self._score(name, network, iteration)
            if pseudo_labels is not None:
                scores["label_coverage"], scores["accuracy"] = self._label_quality(pseudo_labels, iteration)
        return {name: value for name, value in scores.items() if np.isfinite(value)}

    def _score(self, name: str, network: nn.Module, iteration: int) -> float:
        """Mean IoU on one data set."""
        device, n_classes = next(network.parameters()).device, self.label_set.n_classes
        confusion = np.zeros((n_classes + 1,) * 2, np.int64)
        for index, sample in enumerate(self.samples[name]):
            image = network_input(sample).to(device)
            labels = predict_semantic(network, image, sample.semantic.shape)[0].cpu().numpy()
            confusion += confusion_matrix(sample.semantic, labels, n_classes)
            if name == list(self.samples)[-1] and index < N_PICTURES and iteration in (0, self.stop):
                self._save(name, index, sample, {f"prediction-{iteration:06d}": labels})
        iou = iou_per_class(confusion, range(n_classes))
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def _label_quality(self, pseudo_labels: PseudoLabels, iteration: int) -> tuple[float, float]:
        """Coverage and accuracy on the first data set, over the pixels of all its images."""
        name = next(iter(self.samples))
        found, truth = [], []
        for index, sample in enumerate(self.samples[name]):
            labels = pseudo_labels(as_unit_float(to_image(sample)[None]))[0].to(torch.uint8).cpu().numpy()
            found.append(labels.ravel())
            truth.append(resize_labels(sample.semantic, labels.shape).ravel())
            if index < N_PICTURES:
                self._save(name, index, sample, {f"pseudo-{iteration:06d}": labels})
        coverage, accuracy = pseudo_label_quality(
            torch.from_numpy(np.concatenate(found)), torch.from_numpy(np.concatenate(truth))
        )
        return coverage.item(), accuracy.item()

    def _save(self, name: str, index: int, sample: Sample, maps: Mapping[str, np.ndarray]) -> None:
        """Pictures "<data set>-<index>-<what>": image and truth at the start, and label maps."""
        stem = f"{name.replace('/', '.')}-{index:02d}"
        if "prediction-000000" in maps or "pseudo-000000" in maps:
            self.job.save_sample(f"{stem}-image", sample.image)
            self.job.save_sample(f"{stem}-truth", self.label_set.colourise(sample.semantic))
        for what, labels in maps.items():
            self.job.save_sample(f"{stem}-{what}", self.label_set.colourise(labels))
