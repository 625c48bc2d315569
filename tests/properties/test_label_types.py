"""Label maps of any integer type, strides and ids give what plain int64 arrays give, or one clear error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from panolib.clustering import in_masks, votes
from panolib.clustering.labels import (
    drop_small_clusters,
    merge_close_clusters,
    relabel_consecutive,
    split_disconnected,
    stability_filter,
)
from panolib.data.label_maps import as_ids, as_labels, consecutive
from panolib.data.views import train_view
from panolib.data.warping import warp_labels
from panolib.inference import instances, panoptic
from panolib.lab import provenance
from panolib.labels import CITYSCAPES, VOID
from panolib.losses import embedding, semantic
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix
from panolib.metrics.threat_score import ThreatScore
from panolib.related.realtime import layered_pseudo_labels
from panolib.training import pseudo_labels

CAR, PERSON, ROAD = CITYSCAPES.ids_of(["car", "person", "road"])
THINGS = CITYSCAPES.thing_ids
HEIGHT, WIDTH = 9, 12
NUMPY_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">i4", ">u2"]
TORCH_TYPES = [
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
]  # fmt: skip
STRIDES = {
    "contiguous": lambda a: a.copy(),
    "flipped": lambda a: a[..., ::-1].copy()[..., ::-1],
    "transposed": lambda a: np.swapaxes(np.swapaxes(a, -1, -2).copy(), -1, -2),
    "sliced": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}


def maps():
    """int64 semantic [H, W] and instance [H, W] maps of a car, two persons and road."""
    semantic_map = np.full((HEIGHT, WIDTH), ROAD)
    instance_map = np.zeros((HEIGHT, WIDTH), np.int64)
    for number, (rows, columns, category) in enumerate(
        [(slice(0, 4), slice(0, 5), CAR), (slice(5, 9), slice(0, 4), PERSON),
         (slice(2, 7), slice(7, 11), PERSON)],
        start=1,
    ):  # fmt: skip
        semantic_map[rows, columns], instance_map[rows, columns] = category, number
    return semantic_map, instance_map


def embedded():
    """float [4, H, W] with one ball for every instance."""
    _, instance_map = maps()
    centres = torch.eye(4) * 5
    noise = torch.randn(4, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    return centres[torch.from_numpy(instance_map)].movedim(-1, 0) + 0.05 * noise


def tensor(labels):
    """For functions that take tensors only."""
    return as_labels(labels, "labels") if isinstance(labels, np.ndarray) else labels


def segments(instance_map):
    ids = [int(i) for i in np.unique(np.asarray(instance_map).astype(np.int64)) if i]
    return [
        {"id": i, "category_id": CAR if i == min(ids) else PERSON, "confidence": 0.5 + 0.1 * k}
        for k, i in enumerate(ids)
    ]


def panoptic_scores(semantic_map, instance_map):
    stats = PanopticStats(CITYSCAPES)
    stats.update(instance_map, segments(instance_map), np.roll(instance_map, 1, 1), segments(instance_map))
    return stats.images[0].tolist()


def threat_scores(semantic_map, instance_map):
    score = ThreatScore(CITYSCAPES)
    score.update(instance_map, segments(instance_map), np.roll(instance_map, 1, 0), segments(instance_map))
    return score.images[0].tolist()


def average_precision(semantic_map, instance_map):
    score = CityscapesAP(CITYSCAPES, min_region=1)
    score.update(instance_map, segments(instance_map), np.roll(instance_map, 1, 1), segments(instance_map))
    return np.nan_to_num(score.result().per_threshold).tolist()


def embedding_losses(semantic_map, instance_map):
    fields, ids = embedded(), tensor(instance_map)
    terms = embedding.embedding_loss(
        fields[None], ids[None], weights=embedding.EmbeddingLossWeights(), teacher_embeddings=fields[None]
    )
    terms.pop("consistency")  # draws its anchors
    return [float(value) for value in terms.values()]


LOGITS = torch.randn(1, CITYSCAPES.n_classes, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1))
PROBABILITIES = LOGITS[0].softmax(0).numpy()

BY_IDS = {  # of (semantic map, instance map): anything that == compares; instance ids in any numbering
    "panoptic": panoptic_scores,
    "threat": threat_scores,
    "ap": average_precision,
    "embedding losses": embedding_losses,
    "relabel": lambda s, i: relabel_consecutive(tensor(i)).tolist(),
    "drop small": lambda s, i: drop_small_clusters(tensor(i), 17).tolist(),
    "consecutive": lambda s, i: consecutive(i)[0].tolist(),
    "split": lambda s, i: split_disconnected(tensor(i)).tolist(),
    "merge": lambda s, i: merge_close_clusters(embedded().flatten(1).T, tensor(i).flatten(), 0.5).tolist(),
    "stability": lambda s, i: _stable(i),
    "vote": lambda s, i: votes.vote_semantic_class(s, i, THINGS).tolist(),
    "merge panoptic": lambda s, i: panoptic.merge_panoptic(s, i, CITYSCAPES, rule="nearest")[0].tolist(),
    "clean": lambda s, i: (np.asarray(instances.clean_instances(i, kernel=3)) > 0).tolist(),
}
BY_CLASS = {
    "confusion": lambda s, i: confusion_matrix(s, s[::-1], CITYSCAPES.n_classes).tolist(),
    "cross-entropy": lambda s, i: float(semantic.cross_entropy(LOGITS, s[None])),
    "self-training": lambda s, i: float(
        semantic.self_training_loss(
            LOGITS, tensor(s)[None], torch.ones(1, HEIGHT, WIDTH), torch.full((CITYSCAPES.n_classes,), 0.1)
        )
    ),
    "predict": lambda s, i: instances.predict_instances(
        embedded(), s, CITYSCAPES, probabilities=PROBABILITIES, bandwidth=1.0
    )[0].tolist(),
    "masks": lambda s, i: in_masks.cluster_in_class_masks(embedded(), s, THINGS, bandwidth=1.0)[0].tolist(),
    "unguided": lambda s, i: in_masks.cluster_unguided(embedded(), s, THINGS, bandwidth=1.0)[0].tolist(),
    "quality": lambda s, i: [
        float(value)
        for value in pseudo_labels.pseudo_label_quality(tensor(s), torch.full((HEIGHT, WIDTH), ROAD))
    ],
    "train view": lambda s, i: train_view(
        torch.zeros(3, HEIGHT, WIDTH), {"semantic": tensor(s)}, size=(HEIGHT, WIDTH), scale=(1.0, 1.0),
        scale_of="window", hflip=0.0,
    )[1]["semantic"].tolist(),
    "warp": lambda s, i: warp_labels(s[None], torch.eye(2, 3)[None], fill=0).tolist(),
    "confident": lambda s, i: layered_pseudo_labels.keep_confident(
        s, np.full(s.shape, 0.5), np.full(CITYSCAPES.n_classes, 0.4)
    ).tolist(),
}  # fmt: skip


def _stable(instance_map):
    labels, stability = stability_filter(
        tensor(instance_map), embedded(), tensor(instance_map).long() > 0, bandwidth=1.0, min_median_iou=0.5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return labels.tolist(), stability.tolist()


@pytest.mark.parametrize("name", [*BY_IDS, *BY_CLASS])
def test_every_type_and_stride_of_arrays(name):
    function = (BY_IDS | BY_CLASS)[name]
    expected = function(*maps())
    pairs = [*zip(NUMPY_TYPES, itertools.cycle(STRIDES)), *(("u2", strides) for strides in STRIDES)]
    for kind, strides in pairs:
        given = [STRIDES[strides](labels.astype(kind)) for labels in maps()]
        assert function(*given) == expected, (kind, strides)


@pytest.mark.parametrize("kind", TORCH_TYPES, ids=str)
def test_every_type_of_tensors(kind):
    for name, function in (BY_IDS | BY_CLASS).items():
        if name in ("panoptic", "threat", "ap", "confusion", "confident"):
            continue  # they shift or flip their arrays here
        given = [torch.from_numpy(labels).to(kind) for labels in maps()]
        assert function(*given) == function(*map(torch.from_numpy, maps())), name
        flipped = [part.long().T.contiguous().T.to(kind) for part in given]
        assert function(*flipped) == function(*map(torch.from_numpy, maps())), name


@pytest.mark.parametrize("numbers", [(5, 200, 7), (10**8, 3, 2**31 + 1), (2**40, 1, 2**62)])
@pytest.mark.parametrize("name", [name for name in BY_IDS if name not in ("panoptic", "threat", "ap")])
def test_ids_in_any_numbering(name, numbers):
    """Renamed in the same order, ids mean the same."""
    semantic_map, instance_map = maps()
    ordered = np.array([0, *sorted(numbers)])
    assert BY_IDS[name](semantic_map, ordered[instance_map]) == BY_IDS[name](semantic_map, instance_map)


@pytest.mark.parametrize("name", ["panoptic", "threat", "ap"])
def test_scores_with_ids_in_any_numbering(name):
    semantic_map, instance_map = maps()
    for numbers in ((5, 200, 7), (10**8, 3, 2**31 + 1), (2**40, 1, 2**62)):
        renamed = np.array([0, *sorted(numbers)])[instance_map]
        assert BY_IDS[name](semantic_map, renamed) == BY_IDS[name](semantic_map, instance_map)


def test_memory_does_not_grow_with_the_largest_id():
    labels = torch.zeros(12, 16, dtype=torch.long)
    labels[:4, :4] = 10**8
    if not provenance.reset_peak_memory():
        pytest.skip("this system does not measure the peak of a part of a process")
    before = provenance.process_memory("VmRSS")
    weights = embedding.EmbeddingLossWeights()
    embedding.embedding_loss(torch.randn(1, 4, 12, 16), labels[None], weights=weights)
    drop_small_clusters(labels, 2)
    instances.clean_instances(labels)
    assert provenance.process_memory("VmHWM") - before < 50  # MiB; a table takes 800


@pytest.mark.parametrize("function", [as_labels, as_ids, consecutive])
def test_what_is_no_label(function):
    for labels in (
        np.zeros((2, 2)),
        torch.zeros(2, 2),
        np.array(["a"]),
        torch.zeros(2, dtype=torch.complex64),
    ):
        with pytest.raises(ValueError, match=r"labels is .*expected an integer type"):
            function(labels, "labels")
    with pytest.raises(ValueError, match=r"labels holds"):
        function(np.array([2**63], np.uint64), "labels")


@pytest.mark.parametrize("name", [name for name in BY_IDS if name != "stability"])  # it gets our clusters
def test_a_negative_id_is_named(name):
    semantic_map, instance_map = maps()
    instance_map[0, 0] = -3
    with pytest.raises(ValueError, match="-3"):
        BY_IDS[name](semantic_map, instance_map)


@pytest.mark.parametrize(
    "name", ["confusion", "cross-entropy", "self-training", "confident", "merge panoptic"]
)
def test_a_class_that_does_not_exist_is_named(name):
    semantic_map, instance_map = maps()
    semantic_map[0, 0] = 300
    with pytest.raises(ValueError, match="300"):
        (BY_IDS | BY_CLASS)[name](semantic_map, instance_map)


@pytest.mark.parametrize("name", [*BY_IDS, *BY_CLASS])
def test_images_without_an_object_of_one_pixel_and_all_void(name):
    function = (BY_IDS | BY_CLASS)[name]
    if name in (
        "stability",
        "embedding losses",
        "predict",
        "masks",
        "unguided",
        "cross-entropy",
        "self-training",
        "merge",
        "train view",
        "quality",
    ):
        sizes = [(HEIGHT, WIDTH)]  # their second input has this size
    else:
        sizes = [(HEIGHT, WIDTH), (1, 1)]
    for size in sizes:
        function(np.full(size, ROAD), np.zeros(size, np.int64))
        if name not in ("confident",):
            function(np.full(size, VOID), np.zeros(size, np.int64))


def test_no_thing_is_asked_for():
    semantic_map, _ = maps()
    for guided in (True, False):
        labels, table = instances.predict_instances(
            embedded(), semantic_map, CITYSCAPES, thing_ids=[], guided=guided
        )
        assert not labels.any() and table == []
    assert in_masks.cluster_in_class_masks(embedded(), semantic_map, ())[1] == []
    assert len(instances.predict_instances(embedded(), semantic_map, CITYSCAPES, bandwidth=1.0)[1]) == 3
