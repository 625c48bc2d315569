"""Two segmentations of one image, by the student and by the teacher of a self-training."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from panolib.data.loading import iteration_seed
from panolib.data.photometry import network_input
from panolib.data.samples import Sample
from panolib.inference.instances import predict_instances
from panolib.inference.predict import embed_images, predict_image
from panolib.labels import LabelSet

NETWORKS = ("student", "teacher")


@torch.inference_mode()
def segmentations(
    semantic_model: nn.Module,
    student: nn.Module,
    teacher: nn.Module,
    sample: Sample,
    label_set: LabelSet,
    *,
    seed: int,
    **clustering,
) -> tuple[list[np.ndarray], list[float]]:
    """Instances of both networks inside the same masks, clustered as pseudo-labels are, and their stability.

    Instances are int64 [H, W], 0 or 1 .. K; the stability of each is the mean of its instances by embeddings
    of the other, 0 without any, with anchors that are drawn from the seed and the id of the image.
    `clustering`: as `instances.predict_instances`. No label is looked at.
    """
    prediction = predict_image(semantic_model, student.eval(), sample)
    image = network_input(sample).to(prediction.embeddings.device)
    embeddings = (prediction.embeddings, embed_images(teacher.eval(), image)[0])
    labels, stability = [], []
    for own, other in (embeddings, embeddings[::-1]):
        with torch.random.fork_rng():
            torch.manual_seed(iteration_seed(seed, 0, sample.id))
            found, table = predict_instances(
                own, prediction.semantic, label_set, second_embeddings=other, **clustering
            )
        labels.append(found.cpu().numpy())
        stability.append(float(np.mean([row["stability"] for row in table])) if table else 0.0)
    return labels, stability


def packed(labels: np.ndarray) -> Tensor:
    """uint8 [n]: an instance map [H, W] as a PNG of 16 bits, to be kept. ValueError for an id beyond them."""
    if labels.min(initial=0) < 0 or labels.max(initial=0) > np.iinfo(np.uint16).max:
        raise ValueError(f"ids are {labels.min()} .. {labels.max()}; expected 0 .. {np.iinfo(np.uint16).max}")
    return torch.from_numpy(cv2.imencode(".png", labels.astype(np.uint16))[1].ravel())


def unpacked(png: Tensor) -> np.ndarray:
    """int32 [H, W]: `packed` undone."""
    return cv2.imdecode(png.numpy(), cv2.IMREAD_UNCHANGED).astype(np.int32)
