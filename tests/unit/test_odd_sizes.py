"""Every stage takes images and crops of any height and width: odd, smaller than a stride, one pixel."""

from __future__ import annotations

import types
from dataclasses import replace

import numpy as np
import pytest
import torch

from panolib.clustering import in_masks
from panolib.data.samples import Sample
from panolib.inference.instances import predict_instances
from panolib.inference.panoptic import panoptic_truth
from panolib.labels import CITYSCAPES, VOID
from panolib.losses.embedding import EmbeddingLossWeights
from panolib.related.detr.targets import detr_target
from panolib.related.detr.training import coarse_masks
from panolib.related.realtime.adversarial import AdversarialSpec, AdversarySpec, adversarial_train
from panolib.related.realtime.discriminator import Discriminator
from panolib.related.realtime.meta_pseudo_labels import MetaSpec, meta_train
from panolib.scoring.evaluate import score_panoptic
from panolib.scoring.instance_monitor import InstanceMonitor
from panolib.scoring.semantic_monitor import SemanticMonitor
from panolib.training.instance import instance_self_train, train_instance_baseline
from panolib.training.instance_targets import to_embedding_grid
from panolib.training.run_specs import (
    BaselineSpec,
    InstanceBaselineSpec,
    InstanceSelfTrainingSpec,
    SelfTrainingSpec,
)
from panolib.training.semantic import self_train, train_baseline, whole_image_labels
from panolib.training.setup import build_instance, build_semantic
from panolib.training.specs import (
    Augmentation,
    Compute,
    EncoderSpec,
    InstanceNetwork,
    Margins,
    Monitor,
    Optimiser,
    SemanticNetwork,
)

ROAD, CAR, PERSON = CITYSCAPES.ids_of(["road", "car", "person"])
N_CLASSES = CITYSCAPES.n_classes
SIZES = [(47, 95), (33, 64), (7, 5)]
ENCODER = EncoderSpec("test_efficientnet", None)
NETWORKS = {
    "v2": SemanticNetwork("v2", ENCODER, 8, (1, 2)),
    "v3": SemanticNetwork("v3", ENCODER, 16, (1, 2), head_channels=16),
    "v3+": SemanticNetwork("v3+", ENCODER, 8, (1, 2), head_channels=16),
    "bisenet": SemanticNetwork("bisenet", ENCODER, 32),
}
SHARED = {
    "label_set": "cityscapes", "source": "a", "iterations": 1,
    "optimiser": Optimiser("adamw", 0.01, 0.0, 0.9, 1.0, "constant", 0),
    "batch_size": 2, "compute": Compute("cpu", "32-true", 0, False), "seed": 0,
}  # fmt: skip
SEMANTIC = SHARED | {"validation": "c"}
EMBEDDING = SHARED | {
    "weights": EmbeddingLossWeights(), "margins": Margins(0.5, 2.0, 0.5, 0.0, 1.0), "min_area": 1,
}  # fmt: skip
SAC = {
    "target": "b", "n_target": 2, "n_views": 2, "zoom": (0.5, 1.0), "noise_blur": None, "target_weight": 1.0,
    "focal_exponent": 3.0, "threshold_scale": 0.75, "prior_scale": 1e-3, "prior_momentum": 0.99,
    "minimum_threshold": 0.0, "ema_decay": 0.9, "ema_interval": 1, "batch_norm": "target",
    "rare_class_sampling": True,
}  # fmt: skip


def street(size, seed=0):
    """A car in the upper left, a person in the lower right corner."""
    height, width = size
    semantic = np.full(size, ROAD, np.uint8)
    instance = np.zeros(size, np.int32)
    for number, (category, rows, columns) in enumerate(
        [(PERSON, slice(height // 2, None), slice(width // 2, None)),
         (CAR, slice(max(1, height // 2)), slice(max(1, width // 2)))], start=1
    ):  # fmt: skip
        semantic[rows, columns], instance[rows, columns] = category, number
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Sample(image, semantic, instance, instance > 9, str(seed))


def streets(size):
    return [street(size, seed) for seed in range(2)]


def crop(size):
    return Augmentation(*size, (0.5, 1.0), "window", 0.5, 0.2, 0.5, None)


class Once:
    """A job of one iteration that keeps what is logged."""

    start = 0

    def __init__(self):
        self.logged = {}

    def resume(self):
        return None

    def progress(self, start, stop):
        return range(start, stop)

    def log(self, iteration, **values):
        self.logged |= {name: float(torch.as_tensor(value).detach()) for name, value in values.items()}

    def checkpoint(self, state_fn, iteration):
        pass

    def save_sample(self, name, image):
        assert image.dtype == np.uint8 and image.ndim == 3

    def assert_finite(self):
        assert self.logged and all(map(np.isfinite, self.logged.values())), self.logged


def embedding_network(output_stride):
    channels = (8, 8, 8, 8, 8)[: 6 - output_stride]
    return InstanceNetwork(
        encoder=ENCODER, embedding_dim=4, decoder_channels=channels,
        output_stride=output_stride, coordinates=True,
    )  # fmt: skip


def self_training_spec(size, network):
    return InstanceSelfTrainingSpec(
        **EMBEDDING | {"batch_size": 4}, network=network, augmentation=crop(size), target="b",
        source_share=0.5,
        algorithm="mean_shift_plus", min_stability=None, noise_blur=(0.0, 0.0), rotation=90.0,
        momentum_mode="ema", ema_decay=0.9, copy_interval=1, batch_norm="target",
        monitor=Monitor(1, 1, ("b",)),
    )  # fmt: skip


@pytest.mark.parametrize("size", [*SIZES, (2, 3)])
@pytest.mark.parametrize("output_stride", [1, 2])
def test_an_embedding_network_trains_and_trains_itself(size, output_stride):
    network = embedding_network(output_stride)
    job = Once()
    spec = InstanceBaselineSpec(
        **EMBEDDING, network=network, augmentation=crop(size), selection="a", n_selection=1,
        bandwidths=(0.5,), merge_distances=(0.0,),
    )  # fmt: skip
    model = train_instance_baseline(spec, job, streets((40, 61)), CITYSCAPES)  # the image has another size
    job.assert_finite()

    spec, job = self_training_spec(size, network), Once()
    target, guide = streets(size), build_semantic(NETWORKS["v2"], N_CLASSES)
    chosen = {"bandwidth": 0.5, "delta_dist": 2.0}
    instance_self_train(
        spec, job, model.module.state_dict(), streets((40, 61)), target,
        [sample.semantic for sample in target], CITYSCAPES, chosen,
        InstanceMonitor(spec, {"b": target}, guide, CITYSCAPES, chosen, job.save_sample),
    )  # fmt: skip
    job.assert_finite()
    assert job.logged["pseudo_instances"] > 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", NETWORKS)
def test_a_semantic_network_trains_and_trains_itself(size, version):
    job, shape = Once(), {"network": NETWORKS[version], "augmentation": crop(size)}
    model = train_baseline(BaselineSpec(**SEMANTIC, **shape), job, streets((40, 61)), N_CLASSES)
    job.assert_finite()
    target, job = streets(size), Once()
    spec = SelfTrainingSpec(**SEMANTIC, **SAC, **shape, fusion_stride=3, monitor=Monitor(1, 1, ("a", "b")))
    painted = [{"instance": sample.instance} for sample in target]
    monitored = {"a": target, "b": target}
    state = model.module.state_dict()
    watch = SemanticMonitor(spec.monitor, job, monitored, CITYSCAPES, spec.iterations)
    self_train(spec, job, state, streets((40, 61)), target, N_CLASSES, painted=painted, watch=watch)
    job.assert_finite()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (47, 95)])
@pytest.mark.parametrize("stride", [1, 2, 4, 5])
def test_whole_images_have_pseudo_labels_at_any_stride(size, stride):
    model = build_semantic(NETWORKS["v2"], N_CLASSES).eval()
    spec = types.SimpleNamespace(
        fusion_stride=stride, threshold_scale=0.75, prior_scale=1e-3, minimum_threshold=0.0
    )
    labels = whole_image_labels(spec, model, torch.full((N_CLASSES,), 0.1), torch.rand(1, 3, *size))
    assert labels.shape == (1, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize("size", [*SIZES, (1, 1), (1, 40), (2, 3)])
@pytest.mark.parametrize("output_stride", [1, 2])
def test_a_pair_of_networks_is_scored(size, output_stride):
    torch.manual_seed(0)
    scores = score_panoptic(
        build_semantic(NETWORKS["v3+"], N_CLASSES), build_instance(embedding_network(output_stride)),
        streets(size), CITYSCAPES, bandwidth=0.5, delta_dist=2.0, min_size=1,
        merge_rules=("void", "nearest"), opening=3, min_region=1, n_samples=1,
        save_sample=lambda name, image: None,
    )  # fmt: skip
    assert scores["n_images"] == 2 and 0 <= scores["pq_19"] <= 1


def test_a_monitor_of_labels_takes_images_of_different_odd_sizes():
    images = [street((47, 95)), street((8, 3))]
    watch = SemanticMonitor(Monitor(1, 2, ("a",)), Once(), {"a": images}, CITYSCAPES, 1)
    model = build_semantic(NETWORKS["bisenet"], N_CLASSES)
    found = watch(1, model, lambda image: torch.zeros(1, *(-(-side // 2) for side in image.shape[-2:])))
    assert found["label_coverage"] == 1.0


@pytest.mark.parametrize("size", [(33, 64), (47, 95), (9, 5)])
def test_adversarial_and_meta_training(size):
    adversary = AdversarySpec("light", 4, 0.01, 0.1, 0)
    shared = SEMANTIC | {"target": "b", "n_target": 2, "batch_norm": "target", "adversary": adversary}
    shared |= {"network": NETWORKS["bisenet"], "augmentation": crop(size)}
    state = build_semantic(NETWORKS["bisenet"], N_CLASSES).state_dict()
    job = Once()
    adversarial_train(
        AdversarialSpec(**shared, pseudo_labels=None), job, state, streets(size), streets(size), N_CLASSES,
        pseudo_labels=[sample.semantic for sample in streets(size)],
    )  # fmt: skip
    job.assert_finite()
    job = Once()
    meta = {"mode": "rt", "feedback": "old_minus_new", "student_pretrained": True, "threshold": 0.9}
    meta |= {"uda_weight": 1.0, "epochs": 50}
    meta_train(MetaSpec(**shared, **meta), job, state, streets(size), streets(size), N_CLASSES)
    job.assert_finite()


@pytest.mark.parametrize("kind", ["fcd", "light"])
def test_a_discriminator_sees_padding_of_zeros_beyond_multiples_of_32(kind):
    judge = Discriminator(3, kind=kind, width=4)
    image = torch.rand(2, 3, 45, 70)
    padded = torch.zeros(2, 3, 64, 96)
    padded[..., :45, :70] = image
    assert torch.equal(judge(image), judge(padded)[..., :45, :70])
    assert judge(image[..., :1, :1]).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("size", [(47, 95), (1, 1), (5, 2)])
def test_detr_learns_masks_of_any_size(size):
    target = detr_target(*panoptic_truth(street(size), CITYSCAPES))
    assert len(target["masks"]) >= 1
    coarse = coarse_masks(target["masks"], 4)
    assert coarse.shape[1:] == tuple(-(-side // 4) for side in size)
    torch.testing.assert_close(coarse.sum(0), torch.ones(coarse.shape[1:]))  # nothing is void, nothing lost


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [(48, 96), (47, 95), (1, 1), (6, 13)])
def test_labels_on_the_embedding_grid_lie_under_its_pixels(size, stride):
    rows, columns = (-(-side // stride) for side in size)
    labels = torch.arange(size[0] * size[1]).view(1, *size)
    found = to_embedding_grid(labels, torch.zeros(1, 4, rows, columns))
    assert found.shape == (1, rows, columns)
    if size[0] % stride == 0 and size[1] % stride == 0:
        assert torch.equal(found, labels[:, stride // 2 :: stride, stride // 2 :: stride])
    at_row, at_column = found // size[1], found % size[1]
    centre_row, centre_column = torch.arange(rows) * stride, torch.arange(columns) * stride
    assert ((at_row - centre_row[:, None]).abs() <= stride // 2).all()
    assert ((at_column - centre_column).abs() <= stride // 2).all()


@pytest.mark.parametrize("size", [(47, 95), (64, 97), (1, 1)])
def test_training_and_inference_ask_the_same_pixels(size):
    """Embeddings that copy what `to_embedding_grid` teaches give every pixel back but for borders."""
    truth = torch.from_numpy(street(size).instance).long()
    grid = torch.zeros(1, 1, *(-(-side // 2) for side in size))
    embeddings = 10.0 * to_embedding_grid(truth[None], grid).float()
    semantic = street(size).semantic
    labels, table = predict_instances(embeddings, semantic, CITYSCAPES)
    found = to_embedding_grid(labels[None], grid)[0]
    assert torch.equal(found > 0, to_embedding_grid(truth[None], grid)[0] > 0)
    assert len(table) == len(np.unique(street(size).instance[street(size).instance > 0]))


def test_a_crop_of_one_pixel_trains_without_an_object():
    spec = replace(self_training_spec((8, 8), embedding_network(2)), augmentation=crop((1, 1)))
    job = Once()
    model = build_instance(spec.network)
    void = [replace(street((9, 9)), semantic=np.full((9, 9), VOID, np.uint8)) for _ in range(2)]
    masks = [sample.semantic for sample in void]
    chosen = {"bandwidth": 0.5, "delta_dist": 2.0}
    spec = replace(spec, batch_norm="frozen")  # batch statistics of one value do not exist
    instance_self_train(spec, job, model.state_dict(), void, void, masks, CITYSCAPES, chosen)
    job.assert_finite()


def test_a_single_crop_below_the_stride_is_refused_where_batch_norm_learns_from_it():
    spec = self_training_spec((16, 16), embedding_network(2))
    with pytest.raises(ValueError, match=r"augmentation: crops of 16 x 16, one at a time"):
        replace(spec, batch_size=2)
    assert replace(spec, batch_size=2, batch_norm="frozen").batch_size == 2
    assert replace(spec, batch_size=2, augmentation=crop((33, 1))).batch_size == 2


def stability_filters(min_stability, monkeypatch):
    """How often the pseudo-labels of one step of self-training are filtered."""
    calls, used = [], in_masks.stability_filter
    monkeypatch.setattr(in_masks, "stability_filter", lambda *a, **k: calls.append(1) or used(*a, **k))
    spec = replace(
        self_training_spec((32, 48), embedding_network(2)), min_stability=min_stability, monitor=None
    )
    target = streets((32, 48))
    instance_self_train(
        spec, Once(), build_instance(spec.network).state_dict(), target, target,
        [sample.semantic for sample in target], CITYSCAPES, {"bandwidth": 0.5, "delta_dist": 2.0},
    )  # fmt: skip
    return len(calls)


def test_the_stability_filter_runs_for_every_class_where_it_is_asked_for(monkeypatch):
    assert stability_filters(0.5, monkeypatch) == 4  # two crops, a car and a person in each


def test_a_stability_filter_that_is_switched_off_does_not_run(monkeypatch):
    assert stability_filters(None, monkeypatch) == 0
