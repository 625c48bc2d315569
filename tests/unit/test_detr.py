"""DETR: targets, panoptic map of queries, matcher and loss of the library, training, settings."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from panolib.data.samples import Sample
from panolib.inference.panoptic import panoptic_truth
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import CITYSCAPES, VOID
from panolib.metrics.panoptic import PanopticStats
from panolib.models.complexity import count_operations
from panolib.profiles import find_profile, project_root
from panolib.related.detr.network import ENCODER, DetrNetwork, MissingTransformers, build_detr
from panolib.related.detr.runs import read_settings, variants
from panolib.related.detr.score import QueryRule, predict_queries, score_detr, semantic_of
from panolib.related.detr.targets import detr_target, panoptic_from_queries
from panolib.related.detr.training import (
    CHANGES,
    ColourPolicy,
    adjust,
    change_colours,
    chosen_images,
    coarse_masks,
    epoch_position,
    loss_terms,
    train_detr,
)
from panolib.study.settings import read_profile
from panolib.training.setup import build_optimizer
from panolib.training.specs import EncoderSpec, Optimiser

TINY = DetrNetwork(
    encoder=EncoderSpec("test_efficientnet", None, 1), output_stride=32, n_points=64, d_model=32, heads=4,
    encoder_layers=1, decoder_layers=2, feed_forward=16, n_queries=6, no_object_weight=0.1,
)  # fmt: skip
ROAD, SKY, CAR = (CITYSCAPES.classes.index(name) for name in ("road", "sky", "car"))
NOTHING = CITYSCAPES.n_classes


def a_sample(height: int = 32, width: int = 64) -> Sample:
    """Sky above road, two cars, a crowd of cars, and void at the right."""
    semantic = np.full((height, width), ROAD, np.uint8)
    semantic[: height // 2] = SKY
    instance = np.zeros((height, width), np.int32)
    for number, left in ((1, 4), (2, 20)):
        semantic[height // 2 : height // 2 + 8, left : left + 10] = CAR
        instance[height // 2 : height // 2 + 8, left : left + 10] = number
    crowd = np.zeros((height, width), bool)
    crowd[height // 2 : height // 2 + 4, 40:48] = True
    semantic[crowd] = CAR
    semantic[:, -4:] = VOID
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (height, width, 3), dtype=np.uint8)
    image[semantic == SKY] //= 4
    return Sample(image, semantic, instance, crowd, "a")


# --- targets ----------------------------------------------------------------------------------------------


def test_target_has_a_mask_for_stuff_and_things_but_not_for_crowds():
    panoptic_map, segments = panoptic_truth(a_sample(), CITYSCAPES)
    target = detr_target(panoptic_map, segments)
    assert sorted(target["class_labels"].tolist()) == [ROAD, SKY, CAR, CAR]
    assert sum(segment["iscrowd"] for segment in segments) == 1
    sky = target["class_labels"].tolist().index(SKY)
    assert target["masks"][sky].sum() == 16 * 60
    assert target["masks"].sum(0).max() == 1
    covered = target["masks"].sum(0).bool().numpy()
    void_or_crowd = (panoptic_map == 0) | np.isin(panoptic_map, [s["id"] for s in segments if s["iscrowd"]])
    assert (covered == ~void_or_crowd).all()


@pytest.mark.parametrize("segments", [[], [{"id": 3, "category_id": CAR}]], ids=["void", "vanished"])
def test_target_of_an_image_without_a_segment(segments):
    target = detr_target(np.zeros((6, 8), np.int32), segments)
    shapes = {name: tuple(values.shape) for name, values in target.items()}
    assert shapes == {"class_labels": (0,), "masks": (0, 6, 8)}


def test_coarse_masks_are_shares_of_cells():
    masks = torch.zeros(1, 4, 6)
    masks[0, 0, 0] = masks[0, 3, 4] = 1
    assert coarse_masks(masks, 4).tolist() == [[[1 / 16, 1 / 8]]]  # the last cell is cut to 4 x 2
    assert torch.equal(coarse_masks(masks, 1), masks)
    assert coarse_masks(torch.zeros(0, 5, 6), 4).shape == (0, 2, 2)


# --- inference ----------------------------------------------------------------------------------------------


def slow_panoptic(logits, masks, threshold, min_area):
    """Pixel by pixel: [(train id, set of pixels)] of the segments."""
    probabilities = torch.softmax(logits, -1)
    alive = []
    for query in range(len(logits)):
        score, label = probabilities[query].max(-1)
        if int(label) != NOTHING and float(score) > threshold:
            alive.append((query, int(label)))
    while True:
        segments: dict = {}
        for y in range(masks.shape[1]):
            for x in range(masks.shape[2]):
                if alive:
                    query, label = max(alive, key=lambda pair: float(masks[pair[0], y, x]))
                    key = ("stuff", label) if label in CITYSCAPES.stuff_ids else ("thing", query, label)
                    segments.setdefault(key, set()).add((y, x))
        small = {key for key, pixels in segments.items() if len(pixels) <= min_area}
        if not small:
            return sorted((key[-1], sorted(pixels)) for key, pixels in segments.items())
        alive = [
            (query, label)
            for query, label in alive
            if not {("stuff", label), ("thing", query, label)} & small
            and (("stuff", label) in segments or ("thing", query, label) in segments)
        ]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("min_area", [0, 4, 12, 1000])
def test_panoptic_from_queries_is_the_slow_loop(seed, min_area):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(9, NOTHING + 1, generator=generator)
    logits[:, NOTHING] += 4 * (torch.rand(9, generator=generator) > 0.7)
    logits[1] = logits[0]  # two queries of one class
    masks = torch.randn(9, 5, 8, generator=generator)
    panoptic_map, segments = panoptic_from_queries(
        logits, masks, CITYSCAPES, threshold=0.5, min_area=min_area
    )
    found = sorted(
        (s["category_id"], [tuple(p) for p in np.argwhere(panoptic_map == s["id"]).tolist()])
        for s in segments
    )
    assert found == slow_panoptic(logits, masks, 0.5, min_area)
    assert [s["area"] for s in segments] == [int((panoptic_map == s["id"]).sum()) for s in segments]
    PanopticStats(CITYSCAPES).update(panoptic_map, segments, panoptic_map, segments)


def test_stuff_is_merged_and_things_are_not():
    logits = torch.full((4, NOTHING + 1), -10.0)
    for query, label in enumerate((ROAD, ROAD, CAR, CAR)):
        logits[query, label] = 10
    masks = torch.zeros(4, 2, 8)
    for query in range(4):
        masks[query, :, 2 * query : 2 * query + 2] = 1
    _, segments = panoptic_from_queries(logits, masks, CITYSCAPES, min_area=0)
    assert sorted((s["category_id"], s["area"], s["isthing"]) for s in segments) == [
        (ROAD, 8, False), (CAR, 4, True), (CAR, 4, True),
    ]  # fmt: skip


def test_no_kept_query_and_no_object_are_void():
    logits = torch.zeros(3, NOTHING + 1)
    logits[0, NOTHING] = 20
    panoptic_map, segments = panoptic_from_queries(logits, torch.zeros(3, 4, 6), CITYSCAPES)
    assert panoptic_map.shape == (4, 6) and not panoptic_map.any() and segments == []
    assert (semantic_of(panoptic_map, segments, CITYSCAPES) == NOTHING).all()
    with pytest.raises(ValueError, match="as many queries"):
        panoptic_from_queries(logits[:, :5], torch.zeros(3, 4, 6), CITYSCAPES)


# --- the library's network, matcher and loss ----------------------------------------------------------------


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="48 with 4 heads; expected a multiple of 32"):
        replace(TINY, d_model=48)
    with pytest.raises(ValueError, match="frozen is 9, expected 0 to 6"):
        replace(TINY, encoder=EncoderSpec("test_efficientnet", None, 9))


def test_mask2former_sees_the_image_through_our_encoder_and_learns_but_for_its_frozen_stages():
    torch.manual_seed(0)
    model = build_detr(TINY, 3).train()
    images = torch.randn(2, 3, 64, 128)
    seen = []
    hook = model.encoder.register_forward_hook(lambda module, inputs, outputs: seen.append(inputs[0]))
    outputs = model(pixel_values=images, labels=[targets_of(5), targets_of(1)])
    hook.remove()
    assert torch.equal(seen[0], images) and len(seen) == 1
    assert outputs.logits.shape == (2, 6, 4) and outputs.pred_masks.shape == (2, 6, 16, 32)
    assert (outputs.logits[0] - outputs.logits[1]).std() > 1e-3  # the image reaches the queries
    assert (outputs.pred_masks[0] - outputs.pred_masks[1]).std() > 1e-3
    outputs.loss.backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    stem = {f"{ENCODER}encoder.stages.0.{name}" for name, _ in model.encoder.stages[0].named_parameters()}
    assert still == stem and stem
    assert not model.encoder.stages[0].training and model.encoder.stages[1].training


def test_sizes_of_mask2former_are_those_of_the_settings():
    config = build_detr(replace(TINY, decoder_layers=3, n_queries=7), 3).network.config
    assert (config.num_queries, config.num_attention_heads, config.train_num_points) == (7, 4, 64)
    assert (config.hidden_dim, config.feature_size, config.mask_feature_size) == (32, 32, 32)
    assert (config.dim_feedforward, config.encoder_feedforward_dim, config.encoder_layers) == (16, 16, 1)
    assert config.no_object_weight == 0.1 and config.num_labels == 3
    model = build_detr(replace(TINY, decoder_layers=3), 3).eval()
    terms = model(pixel_values=torch.zeros(1, 3, 32, 64), labels=[targets_of(2)]).loss_dict
    assert {name for name in terms if name.startswith("loss_ce")} == {
        "loss_ce", *(f"loss_ce_{layer}" for layer in range(3))
    }  # fmt: skip
    assert len(model.network.model.transformer_module.decoder.layers) == 3


@pytest.mark.parametrize("weights", [None, "package"])
def test_only_an_encoder_with_weights_learns_at_the_lower_rate(weights):
    spec = EncoderSpec("tf_efficientnet_lite0" if weights else "test_efficientnet", weights, 1)
    with torch.device("meta"):
        model = build_detr(replace(TINY, encoder=spec), 3, pretrained=False)
    optimiser = Optimiser("adamw", 0.001, 0.0, 0.9, 4.0, "poly", 0)
    rates = {
        id(parameter): group["lr"]
        for group in build_optimizer(optimiser, model, encoder=ENCODER).param_groups
        for parameter in group["params"]
    }
    of_encoder = {rates[id(p)] for p in model.encoder.parameters() if p.requires_grad}
    of_queries = {rates[id(p)] for p in model.network.model.transformer_module.parameters()}
    assert of_encoder == ({0.001} if weights else {0.004}) and of_queries == {0.004}


def test_mask_loss_of_the_library_is_ours_by_scipy(monkeypatch):
    """Costs and terms 2 CE, 5 mask cross-entropy and 5 Dice, on masks so flat that points do not matter."""
    torch.manual_seed(3)
    draw = torch.rand  # points at the border would see zeros beyond it
    monkeypatch.setattr(torch, "rand", lambda *size, **options: 0.25 + draw(*size, **options) / 2)
    n_classes = 3
    model = build_detr(replace(TINY, n_queries=4), n_classes)
    logits, values = torch.randn(1, 4, n_classes + 1), torch.tensor([-2.0, -0.5, 1.0, 3.0])
    masks = values[None, :, None, None].expand(1, 4, 8, 16)
    labels, truth = torch.tensor([2, 0]), torch.stack([torch.ones(8, 16), torch.zeros(8, 16)])
    terms = model.network.get_loss_dict(masks, logits, [truth], [labels], None)

    p, q, t = torch.softmax(logits[0], -1).numpy(), 1 / (1 + np.exp(-values.numpy())), np.array([1.0, 0.0])
    cross = -(t * np.log(q[:, None]) + (1 - t) * np.log(1 - q[:, None]))
    points = TINY.n_points
    dice = 1 - (2 * points * q[:, None] * t + 1) / (points * (q[:, None] + t) + 1)
    rows, columns = linear_sum_assignment(5 * cross + 5 * dice - 2 * p[:, labels])
    classes = np.full(4, n_classes)
    classes[rows] = labels.numpy()[columns]
    weight = np.where(classes == n_classes, 0.1, 1.0)
    assert terms["loss_mask"].item() == pytest.approx(5 * cross[rows, columns].mean(), rel=1e-4)
    assert terms["loss_dice"].item() == pytest.approx(5 * dice[rows, columns].mean(), rel=1e-4)
    expected = 2 * -(weight * np.log(p[np.arange(4), classes])).sum() / weight.sum()
    assert terms["loss_cross_entropy"].item() == pytest.approx(expected, rel=1e-4)


def targets_of(n_segments: int) -> dict[str, torch.Tensor]:
    """As many segments of class 0, each a row of the image on a grid of 8 x 16."""
    masks = torch.zeros(n_segments, 8, 16)
    for number in range(n_segments):
        masks[number, number % 8] = 1
    return {"class_labels": torch.zeros(n_segments, dtype=torch.int64), "masks": masks}


def test_without_transformers_one_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingTransformers, match=r"panolib\[detr\]"):
        build_detr(TINY, 3)


@pytest.mark.parametrize("n_segments", [0, 9], ids=["no segment in the batch", "more segments than queries"])
def test_loss_terms_add_up_to_the_library_s_loss(n_segments):
    torch.manual_seed(0)
    model = build_detr(TINY, 3)
    target = targets_of(n_segments)
    outputs = model(pixel_values=torch.randn(2, 3, 32, 64), labels=[target, target])
    terms = loss_terms(outputs.loss_dict)
    assert set(terms) == {"ce", "mask", "dice", "auxiliary"}
    assert sum(terms.values()).item() == pytest.approx(outputs.loss.item(), rel=1e-5)
    outputs.loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


# --- augmentation, data, training ---------------------------------------------------------------------------


POLICY = ColourPolicy(probability=0.5, factors=(0.6, 1.4), quality=(30, 90))


def test_policy_changes_half_of_the_images_each_in_one_of_four_ways(monkeypatch):
    chosen = []

    def remember(image, change, strength):
        chosen.append((change, strength))
        return image

    monkeypatch.setattr("panolib.related.detr.training.adjust", remember)
    torch.manual_seed(0)
    for _ in range(1000):
        change_colours(torch.zeros(3, 8, 8, dtype=torch.uint8), POLICY)
    assert 430 < len(chosen) < 570
    for change in CHANGES:
        strengths = [strength for name, strength in chosen if name == change]
        low, high = POLICY.quality if change == "quality" else POLICY.factors
        assert len(strengths) > 80 and low <= min(strengths) and max(strengths) <= high
        assert max(strengths) - min(strengths) > 0.9 * (high - low)
    assert all(isinstance(strength, int) for change, strength in chosen if change == "quality")


def test_each_change_keeps_size_and_type_and_changes_the_image():
    image = torch.from_numpy(a_sample().image.transpose(2, 0, 1).copy())
    for change, strength in zip(CHANGES, (1.4, 0.6, 0.6, 30)):
        changed = adjust(image, change, strength)
        assert changed.dtype == torch.uint8 and changed.shape == image.shape
        assert not torch.equal(changed, image), change
    flat = torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    assert (adjust(flat, "quality", 90).int() - flat.int()).abs().max() <= 4  # red stays red
    assert adjust(image, "brightness", 1.4).float().mean() > image.float().mean()
    assert change_colours(image, replace(POLICY, probability=0.0)) is image
    with pytest.raises(ValueError, match="low <= high"):
        replace(POLICY, quality=(90, 30))


def test_smaller_choices_are_part_of_larger_ones_and_epochs_are_permutations():
    assert chosen_images(40, 10, 3) == chosen_images(40, None, 3)[:10]
    assert sorted(chosen_images(40, None, 3)) == list(range(40))
    assert chosen_images(40, 10, 4) != chosen_images(40, 10, 3)
    with pytest.raises(ValueError, match="41 training images"):
        chosen_images(40, 41, 0)
    epochs = [[epoch_position(7 * e + i, 7, 0) for i in range(7)] for e in range(3)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]


class Killed(Exception):
    pass


class Samples(list):
    label_set, has_instances = CITYSCAPES, True


def a_run(iterations: int = 4) -> Run:
    settings = read_settings(read_profile(find_profile("smoke")).detr, "smoke")
    values = {name: getattr(settings, name) for name in ("optimiser", "clip", "mask_stride", "size")}
    from panolib.related.detr.training import DetrSpec
    from panolib.training.setup import Compute

    spec = DetrSpec(
        label_set="cityscapes", source="x/train", n_images=None, network=TINY, colours=POLICY,
        iterations=iterations, batch_size=2, compute=Compute("cpu", "32-true", 0, False), seed=0, **values,
    )  # fmt: skip
    return Run("city-detr-test", "detr", spec)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path):
    data, stop_at = Samples([a_sample(), a_sample(32, 64)]), [None]

    def train(run, job):
        log = job.log

        def log_and_perhaps_stop(iteration, **values):
            log(iteration, **values)
            if iteration == stop_at[0]:
                stop_at[0] = None
                raise Killed

        job.log = log_and_perhaps_stop
        model = train_detr(run.spec, job, data)
        job.finish({"model": model.module.state_dict()})
        return {}

    whole = Store(tmp_path / "a", {"detr": train}, checkpoint_s=0.0).final_state(a_run())
    stop_at[0] = 2
    store = Store(tmp_path / "b", {"detr": train}, checkpoint_s=0.0)
    with pytest.raises(Killed):
        store.get(a_run())
    resumed = store.final_state(a_run())
    assert all(torch.equal(whole["model"][name], values) for name, values in resumed["model"].items())
    assert list(store.get(a_run()).curves["iteration"]) == [0, 1, 2, 3]


def test_images_of_another_shape_keep_it():
    seen = []

    def model(pixel_values):
        seen.append(tuple(pixel_values.shape))
        return type("Outputs", (), {"logits": torch.zeros(1, 2, 20), "pred_masks": torch.zeros(1, 2, 4, 5)})

    model.parameters = lambda: iter([torch.zeros(1)])
    logits, masks = predict_queries(model, a_sample(48, 64), (16, 32))
    assert seen == [(1, 3, 16, 21)]
    assert logits.shape == (2, 20) and masks.shape == (2, 48, 64)


class Oracle(torch.nn.Module):
    """Stands for a network that knows one image: a query a segment, sure of its class."""

    def __init__(self, sample):
        super().__init__()
        target = detr_target(*panoptic_truth(sample, CITYSCAPES))
        self.masks = torch.nn.Parameter(20 * target["masks"][None] - 10)
        self.logits = 20 * torch.nn.functional.one_hot(target["class_labels"], NOTHING + 1)[None].float()

    def forward(self, pixel_values):
        assert pixel_values.shape[-2:] == (16, 32)
        return type("Outputs", (), {"logits": self.logits, "pred_masks": self.masks})


def test_scores_at_the_image_s_own_size():
    sample, pictures = a_sample(), {}
    found = score_detr(
        Oracle(sample), Samples([sample]), CITYSCAPES, QueryRule((0.85, 0.5), 0), size=(16, 32),
        n_samples=1, save_sample=pictures.__setitem__,
    )  # fmt: skip
    assert set(found) == {"0.85", "0.5"}
    scores = found["0.85"]
    assert scores["segments"] == 4 and scores["void"] == 0
    assert [scores["pq"][name] for name in ("sky", "car")] == [1.0, 1.0]
    assert scores["iou"]["sky"] == 1.0  # void does not count against it
    assert scores["pq"]["road"] == pytest.approx(768 / 800)  # it covers the crowd of 32 pixels
    assert set(pictures) == {"00-image", "00-truth", "00-prediction-0.85", "00-prediction-0.5"}
    assert not next(iter(found.values()))["pq"]["train"] > 0


# --- settings, tables, findings -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "cpu", "paper"])
def test_profiles(name):
    profile = read_profile(find_profile(name))
    settings = read_settings(profile.detr, name)
    found = variants(settings)
    assert found["plain"] == {} and found["colour-half"]["iterations"] == settings.iterations // 2
    assert set(settings.seeds) <= set(profile.seeds)
    assert [v["n_images"] for k, v in found.items() if "-n" in k] == list(settings.curve_sizes)


# --- what it costs ------------------------------------------------------------------------------------------


class Counted:
    """A system of one linear layer that notes who was called."""

    def __init__(self, name, calls):
        self.network = torch.nn.Linear(3, 5, bias=False)
        self.name, self.calls = name, calls

    def system(self):
        from panolib.related.detr.cost import System

        def step():
            self.network(torch.ones(4, 3)).sum().backward()
            self.calls.append(("step", self.name))

        def infer(sample):
            self.calls.append(("infer", self.name))
            return panoptic_truth(sample, CITYSCAPES)

        return System([self.network], step, infer, lambda: self.network(torch.ones(1, 3)))


def test_both_systems_in_turn_scored_timed_and_counted():
    from panolib.related.detr.cost import compare

    calls: list = []
    systems = {name: Counted(name, calls).system() for name in "ab"}
    found = compare(systems, Samples([a_sample()] * 3), CITYSCAPES, batch_size=4, repeats=2)
    assert [name for kind, name in calls if kind == "infer"] == list("ababab")
    assert [name for kind, name in calls if kind == "step"][-6:] == list(
        "ababab"
    )  # two before, to be counted
    for measured in found.values():
        assert measured["parameters"] == 15
        assert measured["forward_gflop"] == pytest.approx(2 * 15 / 1e9)
        assert measured["step_gflop"] == pytest.approx(2 * 2 * 15 / 1e9)  # forward, and the weights' gradient
        assert measured["scores"]["pq"]["car"] == 1.0
        low, median, high = (measured["infer_s"][name] for name in ("low", "median", "high"))
        assert 0 < low <= median <= high


def test_operations_of_attention_by_hand():
    """Two products of 2 x queries x keys x channels each."""
    queries, keys = torch.zeros(1, 2, 5, 8), torch.zeros(1, 2, 7, 8)  # [B, heads, tokens, channels]
    attend = torch.nn.functional.scaled_dot_product_attention
    assert count_operations(lambda: attend(queries, keys, keys)) == 2 * (2 * 5 * 7 * 16)


def test_recorded_operations_are_counted_again():
    file = project_root() / "results" / "cpu" / "runs" / "city-detr_cost-s0" / "metrics.json"
    settings = read_settings(read_profile(find_profile("cpu")).detr, "cpu")
    if settings.cost_repeats is None:
        pytest.skip("profile cpu has no record of costs")
    recorded = json.loads(file.read_text())
    model = build_detr(settings.network, CITYSCAPES.n_classes).eval()
    with torch.no_grad():
        found = count_operations(lambda: model(pixel_values=torch.zeros(1, 3, *settings.size)))
    assert found / 1e9 == recorded["systems"]["DETR"]["forward_gflop"]


