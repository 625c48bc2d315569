"""How good pseudo-labels and embeddings are while a network trains itself, on labelled images.

Self-training asks the monitor at fixed iterations and writes what it answers into the curves. Labels that
the monitor reads never reach the training, and asking it changes nothing: no weight, no buffer, no draw.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from panolib.data.images import resize_labels
from panolib.data.loading import iteration_seed
from panolib.data.photometry import denormalise, network_input
from panolib.data.samples import Sample
from panolib.inference.instances import predict_instances
from panolib.inference.panoptic import panoptic_truth
from panolib.inference.pictures import panoptic_picture
from panolib.inference.predict import evaluating, to_input_width
from panolib.labels import LabelSet
from panolib.losses.embedding import embedding_loss
from panolib.metrics.threat_score import ThreatScore
from panolib.scoring.evaluate import SaveSample, predicted_masks
from panolib.training.instance_targets import (
    added_coordinates,
    clustering_options,
    learned_ids,
    source_targets,
)
from panolib.training.run_specs import InstanceSelfTrainingSpec

N_PICTURES = 1


@dataclass(frozen=True)
class _Labelled:
    """One image on the device, the mask predicted for it, and its truth."""

    image: Tensor  # float [1, 3, h, w], normalised, at the width that the network sees
    mask: np.ndarray  # uint8 [H, W], predicted train ids
    maps: dict[str, Tensor]  # "semantic", "instance", "crowd" [1, h, w]
    truth: tuple[np.ndarray, list[dict]]  # panoptic


class InstanceMonitor:
    """Callable: (iteration, student, teacher) -> {column of the curves: value}; {} between its intervals.

    For every data set, by name: "tp", "fp" and "fn", the instances that the teacher's embeddings of the clean
    images give inside the predicted masks, with the clustering of the pseudo-labels, against true objects of
    the classes that the run learns (IoU > 0.5); and "loss", the embedding loss of the student with true
    instances, at the margins without rings. A teacher that nobody updates is the start of the run.

    `datasets` are labelled. `guide` predicts the masks, once. `clustering` is "bandwidth" and "delta_dist" as
    chosen on the training domain. At the end `save_sample` takes pictures of the first images of the second
    data set, the target's validation images: "00-image", "00-embeddings" (`embedding_picture`),
    "00-clusters".
    """

    def __init__(
        self,
        spec: InstanceSelfTrainingSpec,
        datasets: Mapping[str, Sequence[Sample]],
        guide: nn.Module,
        label_set: LabelSet,
        clustering: dict[str, float],
        save_sample: SaveSample,
    ):
        self.spec, self.label_set, self.clustering = spec, label_set, clustering
        self.save_sample = save_sample
        self.class_ids = learned_ids(spec, label_set)
        device = next(guide.parameters()).device
        self.images: dict[str, list[_Labelled]] = {}
        for name, dataset in datasets.items():
            samples = [dataset[i] for i in range(min(spec.monitor.n_images, len(dataset)))]
            masks = predicted_masks(guide, samples)
            self.images[name] = [
                _labelled(sample, mask, label_set, device, spec.network.input_width)
                for sample, mask in zip(samples, masks, strict=True)
            ]

    def __call__(self, iteration: int, student: nn.Module, teacher: nn.Module) -> dict[str, float]:
        last = iteration == self.spec.iterations
        if iteration % self.spec.monitor.interval != 0 and not last:
            return {}
        columns: dict[str, float] = {}
        with undisturbed(student, teacher), torch.no_grad():
            torch.manual_seed(iteration_seed(self.spec.seed, iteration, "monitor"))
            for place, (name, images) in enumerate(self.images.items()):
                pictured = N_PICTURES if last and place == min(1, len(self.images) - 1) else 0
                scores = self._score(images, iteration, student, teacher, pictured)
                columns |= {f"{column} {name}": value for column, value in scores.items()}
        return columns

    def _score(
        self, images: list[_Labelled], iteration: int, student: nn.Module, teacher: nn.Module, pictured: int
    ) -> dict[str, float]:
        """Counts and loss on one data set; pictures of the first `pictured` images."""
        spec, score, loss = self.spec, ThreatScore(self.label_set), 0.0
        options = clustering_options(spec, self.label_set, self.clustering, iteration)
        for index, labelled in enumerate(images):
            embeddings = teacher(labelled.image)[0].float()
            others = student(labelled.image).float()
            found = predict_instances(
                embeddings, labelled.mask, self.label_set, thing_ids=self.class_ids, guided=spec.guided,
                second_embeddings=others[0] if spec.min_stability is not None else None, **options,
            )  # fmt: skip
            score.update(*labelled.truth, *found)
            targets, ignore = source_targets(labelled.maps, others, spec.min_area, self.class_ids)
            terms = embedding_loss(
                others, targets, weights=replace(spec.weights, consistency=0.0), ignore=ignore,
                delta_var=spec.margins.delta_var, delta_dist=spec.margins.delta_dist,
                kernel_threshold=spec.margins.kernel_threshold,
                coordinates=added_coordinates(spec.network, others),
            )  # fmt: skip
            loss += float(sum(terms.values())) / len(images)
            if index < pictured:
                self._save_pictures(index, labelled, embeddings, found)
        result = score.result(self.class_ids)
        return {name: int(getattr(result, name).sum()) for name in ("tp", "fp", "fn")} | {"loss": loss}

    def _save_pictures(self, index: int, labelled: _Labelled, embeddings: Tensor, found: tuple) -> None:
        image = denormalise(labelled.image)[0]
        self.save_sample(f"{index:02d}-image", _as_bytes(image.movedim(0, -1).cpu().numpy()))
        self.save_sample(f"{index:02d}-embeddings", embedding_picture(embeddings.cpu()))
        instances, table = found
        segments = [row | {"isthing": True} for row in table]
        picture = panoptic_picture(instances.cpu().numpy(), segments, self.label_set)
        self.save_sample(f"{index:02d}-clusters", picture)


@contextlib.contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """Within the block models are in eval mode and draws come from a fork; afterwards all is as before."""
    with torch.random.fork_rng(), contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        yield


def embedding_picture(embeddings: Tensor) -> np.ndarray:
    """The three main directions of embeddings [E, h, w] as red, green and blue, uint8 [h, w, 3].

    Each channel is stretched from its 1 % to its 99 % quantile; 0 for a direction that is not there.
    """
    points = embeddings.flatten(1).T.double().numpy()  # [N, E]
    points = points - points.mean(0)
    directions = np.linalg.eigh(points.T @ points)[1][:, ::-1][:, :3]  # largest variance first
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(directions.shape[1])])  # no free sign
    values = points @ directions
    low, high = np.quantile(values, (0.01, 0.99), axis=0)
    spread = np.where(high - low > 1e-9, high - low, np.inf)
    channels = np.zeros((len(points), 3))
    channels[:, : values.shape[1]] = (values - low) / spread
    return _as_bytes(channels.reshape(*embeddings.shape[1:], 3))


def _labelled(
    sample: Sample, mask: np.ndarray, label_set: LabelSet, device: torch.device, width: int | None
) -> _Labelled:
    image = to_input_width(network_input(sample).to(device), width)
    maps = {name: torch.from_numpy(np.ascontiguousarray(getattr(sample, name))).long().to(device)
            for name in ("semantic", "instance", "crowd")}  # fmt: skip
    maps = {name: resize_labels(values, image.shape[-2:])[None] for name, values in maps.items()}
    return _Labelled(image, mask, maps, panoptic_truth(sample, label_set))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    """[0, 1] as uint8."""
    return (255 * values.clip(0, 1)).round().astype(np.uint8)
