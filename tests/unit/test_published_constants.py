"""Profile paper beside the constants of SAC and SPOCO, its settings, and one iteration of every stage."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import timm
import torch
import yaml
from torch import nn

from panolib.data import photometry
from panolib.data.mixing import Concatenation
from panolib.data.samples import ImageSet, Sample
from panolib.inference import predict
from panolib.load import load
from panolib.models import encoder
from panolib.models.geometry import Placement
from panolib.models.weights import WeightsError
from panolib.profiles import load_yaml, project_root
from panolib.study import study
from panolib.study.grid import Grid
from panolib.training import batch_norm, crops, instance, semantic, specs
from panolib.training.setup import build_optimizer
from panolib.training.specs import Optimiser

PROFILES = project_root() / "notebooks" / "profiles"
IMAGENET_MEAN, IMAGENET_STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


@functools.cache
def declared(profile):
    return load(profile, train=False)


@pytest.fixture
def paper():
    return declared("paper")


def spec(loaded, branch, rung):
    return loaded.runs[study.run_name("city", branch, rung, 0)].spec


# --- the profile -------------------------------------------------------------------------------------------


def test_semantic_constants_are_those_of_sac(paper):
    baseline, training = spec(paper, "semantic", "source_only"), spec(paper, "semantic", "self_trained")
    crop = baseline.augmentation
    assert (crop.height, crop.width, crop.scale, crop.scale_of) == (640, 640, (0.5, 2.0), "image")
    assert (crop.jitter, crop.jitter_probability, crop.hflip, crop.blur) == (0.5, 0.5, 0.5, None)
    assert (baseline.iterations, baseline.batch_size) == (100 * 9000 // 12, 12)
    assert (training.iterations, training.batch_size) == (200 * 9000 // 8, 8)
    crop = training.augmentation
    assert (crop.height, crop.width, crop.scale, crop.scale_of) == (512, 1024, (0.5, 1.0), "image")
    assert (crop.jitter, crop.blur) == (0.0, None)
    for found in (baseline, training):
        sgd = found.optimiser
        assert (sgd.name, sgd.lr, sgd.weight_decay, sgd.momentum) == ("sgd", 2.5e-4, 5e-4, 0.9)
        assert (sgd.head_lr_scale, sgd.schedule, sgd.decay_biases) == (10.0, "constant", False)
        assert found.renormalise.target.mean == (0.300, 0.344, 0.297)
        assert found.renormalise.gta5.std == (0.243, 0.239, 0.237)
    assert (training.n_target, training.n_views, training.zoom) == (2, 4, (0.5, 1.0))
    assert (training.target_weight, training.focal_exponent, training.threshold_scale) == (5.0, 3.0, 0.75)
    assert (training.prior_scale, training.prior_momentum, training.minimum_threshold) == (1e-3, 0.99, 0.2)
    assert (training.ema_decay, training.ema_interval, training.batch_norm) == (0.99, 100, "frozen")
    abn = spec(paper, "semantic", "abn")
    assert (abn.batch_size, abn.target_batch_size, abn.momentum) == (12, 8, 0.1)
    assert abn.renormalise == baseline.renormalise
    data = paper.sources["city"].settings
    assert data.train_size == (512, 1024) and not data.resize_sources  # targets whole, sources as they are


def test_self_training_of_the_city_starts_from_abn(paper):
    for name, run in paper.runs.items():
        if run.kind in ("self_training", "instance_self_training") and name.startswith("city-"):
            start = dict(run.parents)["start"].name
            # goes on from the self-trained network
            further = any(part in name for part in ("painted", "rounds", "active"))
            expected = "-self_trained-" if further else "-abn-"
            assert expected in start or "bisenet" in name or ("-instance-" in name and further), (name, start)


def test_instance_constants_are_those_of_spoco(paper):
    baseline, training = spec(paper, "instance", "source_only"), spec(paper, "instance", "self_trained")
    adam = baseline.optimiser
    assert (adam.name, adam.lr, adam.weight_decay, adam.schedule) == ("adam", 1e-3, 1e-5, "cosine")
    assert adam.warmup == training.optimiser.warmup == 0
    assert adam.decay_biases and training.optimiser.decay_biases
    assert (baseline.iterations, baseline.batch_size) == (90000, 16)
    assert (training.noise_on, training.noise_jitter_probability) == ("teacher", 0.8)
    assert (training.momentum_mode, training.ema_decay) == ("ema", 0.999)
    assert training.margins.epsilon_0 > 0  # thesis 8.2
    cells = baseline.network.output_stride**2
    for smallest in (baseline.min_area, training.min_area, spec(paper, "panoptic", "self_trained").min_size):
        assert (smallest - 1) * cells < 50 <= smallest * cells  # 50 pixels of 384 x 768


def test_instances_have_one_scale_in_every_stage(full_width=2048, scale=0.375):
    """Width at which a network sees a whole image, as a share of the target's full width."""
    loaded = declared("paper")
    baseline, training = spec(loaded, "instance", "source_only"), spec(loaded, "instance", "self_trained")
    for crop in (baseline.augmentation, training.augmentation):  # source crops
        assert crop.scale_of == "window" and crop.width == 2 * crop.height
        low, high = (crop.width / share / full_width for share in crop.scale)
        assert math.sqrt(low * high) == pytest.approx(scale, rel=1e-3)
    target = crops.clean_view(training.augmentation)
    assert target.scale == (1.0, 1.0) and target.width / full_width == scale
    for found in (baseline, training):  # what scores and chooses the clustering
        image = torch.zeros(1, 3, full_width // 2, full_width)
        seen = predict.to_input_width(image, found.network.input_width)
        assert seen.shape[-1] / full_width == scale and seen.shape[-2:] == (target.height, target.width)


# --- the settings ------------------------------------------------------------------------------------------


class Grey(ImageSet):
    """Images of one value, by name."""

    def __init__(self, name: str, value: int):
        self.name, self.ids, self.value = name, ["0"], value
        self.label_set, self.has_instances = semantic.LABEL_SETS["cityscapes"], False

    def __getitem__(self, index):
        pixels = torch.full((24, 32), self.value, dtype=torch.uint8).numpy()
        image = torch.full((24, 32, 3), self.value, dtype=torch.uint8).numpy()
        return Sample(image, pixels * 0, None, None, self.ids[index])


STATISTICS = specs.Renormalisation(
    target=specs.ChannelStatistics((0.300, 0.344, 0.297), (0.175, 0.180, 0.177)),
    synthia=specs.ChannelStatistics((0.315, 0.278, 0.248), (0.225, 0.214, 0.210)),
    gta5=specs.ChannelStatistics((0.481, 0.479, 0.465), (0.243, 0.239, 0.237)),
)


@pytest.mark.parametrize("name", ["synthia", "gta5", "cityscapes"])
def test_renormalised_crops_are_those_of_sac(name):
    """The reference normalises with another mean and deviation; padding is 0 in both."""
    dataset = Concatenation([Grey(name, 60)])
    crop = specs.Augmentation(40, 40, (1.0, 1.0), "image", 0.0, 0.0, 0.0, None)
    image = crops.LabelledBatches(dataset, 2, crop, renormalise=STATISTICS)(0)["image"]
    unlabelled = crops.UnlabelledBatches(dataset, 2, crop, renormalise=STATISTICS)(0)["image"]
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    if name != "cityscapes":
        source, target = getattr(STATISTICS, name), STATISTICS.target
        source_mean, source_std, target_mean, target_std = map(
            torch.tensor, (source.mean, source.std, target.mean, target.std)
        )
        mean = source_mean - source_std / target_std * (target_mean - IMAGENET_MEAN)
        std = source_std * IMAGENET_STD / target_std
    expected = (60 / 255 - mean) / std
    for found in (image, photometry.normalise(unlabelled)):
        values = found.movedim(1, -1).reshape(-1, 3)
        padding = values.abs().amax(1) < 1e-5
        assert padding.sum() == 2 * (40 * 40 - 24 * 32)
        torch.testing.assert_close(values[~padding], expected.expand((~padding).sum(), 3), rtol=0, atol=1e-5)


def test_without_statistics_nothing_is_recoloured():
    crop = specs.Augmentation(24, 32, (1.0, 1.0), "image", 0.0, 0.0, 0.0, None)
    found = crops.LabelledBatches([Grey("synthia", 60)[0]], 1, crop)(0)["image"]
    torch.testing.assert_close(found[0, :, 0, 0], (60 / 255 - IMAGENET_MEAN) / IMAGENET_STD)


def test_biases_decay_where_it_is_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    for decayed in (False, True):
        adam = Optimiser("adam", 1e-3, 1e-5, 0.9, 1.0, "cosine", 0, decayed)
        groups = {len(p.shape): g["weight_decay"] for g in build_optimizer(adam, model).param_groups
                  for p in g["params"]}  # fmt: skip
        assert groups == {4: 1e-5, 1: 1e-5 if decayed else 0.0}


@pytest.mark.parametrize("branch", ["semantic_baseline", "instance_baseline"])
def test_the_key_of_a_run_follows_the_file_of_its_weights(paper, branch, tmp_path):
    path, keys, city = tmp_path / "resnet.pth", set(), paper.profile.city
    for content in (b"one", b"another"):
        path.write_bytes(content)
        section = getattr(city, branch)
        encoder = {**section["network"]["encoder"], "weights": str(path)}
        section = {**section, "network": {**section["network"], "encoder": encoder}}
        settings = replace(city, **{branch: section})
        grid = Grid("city", settings, paper.profile.compute, paper.sources["city"], 0, "paper.yaml")
        baseline = grid.semantic_baseline("source_only", "synthia/train")
        if branch == "instance_baseline":
            baseline = grid.instance_baseline("source_only", "synthia/train", "synthia/val", baseline)
        keys.add(baseline.key)
    assert len(keys) == 2


def test_a_whole_image_is_embedded_at_the_width_of_the_network():
    seen = []

    class Network(nn.Module):
        input_width = 48

        def forward(self, image):
            seen.append(image.shape)
            return image[:, :2, ::2, ::2]

    embeddings = predict.embed_images(Network(), torch.ones(1, 3, 61, 96))
    assert seen == [(1, 3, 30, 48)] and embeddings.shape == (1, 2, 15, 24)
    assert predict.to_input_width(torch.ones(1, 3, 61, 96), None).shape == (1, 3, 61, 96)


# --- one iteration of everything ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thin_paper(tmp_path_factory):
    """Profile paper with all its settings, but thin networks, rendered images and one iteration a stage."""
    root = tmp_path_factory.mktemp("paper")
    profile = load_yaml(PROFILES / "paper.yaml")
    profile |= {"seeds": [0], "compute": load_yaml(PROFILES / "smoke.yaml")["compute"]}
    city = profile["city"]
    city["data"] |= {
        "synthia": "cache/synthia", "gta5": "cache/gta5", "cityscapes": "cache/cityscapes",
        "n_val_synthia": 2, "n_val_gta5": 1, "mix_requires": ["truck"], "train_size": [48, 96],
        "embedded": {
            "n_synthia": 8, "n_gta5": 24, "n_train": 4, "n_val": 2, "height": 64, "width": 128, "seed": 1
        },
    }  # fmt: skip
    small = {"height": 40, "width": 40}
    city["semantic_baseline"] |= {"iterations": 1, "batch_size": 3}
    city["semantic_baseline"]["augmentation"] |= small
    city["batch_norm"] |= {"n_batches": 2, "batch_size": 3, "target_batch_size": 2}
    city["batch_norm"]["augmentation"] |= {"height": 48, "width": 96}
    city["self_training"] |= {"iterations": 1, "batch_size": 2, "n_target": 1, "n_views": 2}
    city["self_training"]["fusion_stride"] = 2
    city["self_training"]["augmentation"] |= {"height": 48, "width": 96}
    city["instance_baseline"] |= {"iterations": 1, "batch_size": 2, "n_selection": 1}
    city["instance_baseline"]["augmentation"] |= {"height": 32, "width": 64}
    city["instance_batch_norm"] |= {"n_batches": 2, "batch_size": 2}
    city["instance_self_training"] |= {"iterations": 1, "batch_size": 2}
    encoder = {"name": "test_efficientnet", "weights": "imagenet"}
    city["semantic_baseline"]["network"] |= {"encoder": encoder, "rates": [1, 2]}
    city["instance_baseline"]["network"] |= {
        "encoder": encoder, "decoder_channels": [8, 8, 8, 8], "input_width": 64
    }  # fmt: skip
    city["panoptic"] |= {"n_samples": 0}
    path = root / "thin.yaml"
    path.write_text(yaml.safe_dump(profile))
    loaded = load(path, root=root)
    loaded.sources["city"].prepare(progress=False)
    return loaded


def tiny_state(name):
    return timm.create_model(name).state_dict()


def no_weights(name, weights):
    raise WeightsError("not to be had")


def test_every_stage_of_paper_runs_and_only_baselines_ask_for_weights(thin_paper, monkeypatch):
    """Later stages begin with a state that holds them: ABN, self-training, scoring.

    All stages re-normalise the source and upsample on receptive fields, also on the smaller canvas of fusion.
    """
    asked, recoloured, upsampled = [], set(), set()
    original = crops._crop, semantic.upsample_to

    def crop(batches, index, sample, maps):
        origin, colours = batches.dataset.origin(index), batches.renormalise
        recoloured.add((origin, colours is not None and colours.recolour(origin) is not None))
        return original[0](batches, index, sample, maps)

    def upsample_to(maps, size, placement, *, image_size=None):
        upsampled.add((placement, tuple(size), tuple(image_size or size)))
        return original[1](maps, size, placement, image_size=image_size)

    def weights(name, weights):
        asked.append(weights)
        return tiny_state(name)

    def get(branch, rung):
        return thin_paper.get(study.run_name("city", branch, rung, 0))

    monkeypatch.setattr(crops, "_crop", crop)
    monkeypatch.setattr(semantic, "upsample_to", upsample_to)
    monkeypatch.setattr(encoder, "find_encoder_weights", weights)
    get("semantic", "source_only")
    assert recoloured <= {("synthia", True), ("gta5", True)} and recoloured
    get("instance", "source_only")
    assert asked == ["imagenet"] * 2

    monkeypatch.setattr(encoder, "find_encoder_weights", no_weights)
    for rung in ("abn", "self_trained"):
        recoloured.clear()
        assert "start" in get("semantic", rung).info["parents"]
        assert ("cityscapes", False) in recoloured
        assert ("synthia", True) in recoloured or ("gta5", True) in recoloured
        assert len({name for name, _ in recoloured}) == len(recoloured)
    canvas, fused, crop = (48, 96), (24, 48), (40, 40)
    placement = Placement("receptive_field", 8)
    assert upsampled == {(placement, crop, crop), (placement, canvas, canvas), (placement, fused, canvas)}
    get("instance", "self_trained")
    metrics = get("panoptic", "self_trained").metrics
    assert metrics["n_images"] == 2 and "pq_19" in metrics
    with pytest.raises(WeightsError, match="not to be had"):
        get("semantic", "oracle")


class Interrupted:
    """A job that keeps its checkpoint, or goes on from one."""

    def __init__(self, state=None):
        self.state, self.start = state, 0 if state is None else 1

    def resume(self):
        return self.state

    def progress(self, start, stop):
        return range(start, stop)

    def log(self, iteration, **values):
        pass

    def checkpoint(self, state_fn, iteration):
        self.state = state_fn()


def test_a_baseline_that_goes_on_does_not_ask_for_weights(thin_paper, monkeypatch):
    source = thin_paper.sources["city"].open("synthia/train")
    for branch, train, classes in (
        ("semantic", semantic.train_baseline, 19),
        ("instance", instance.train_instance_baseline, semantic.LABEL_SETS["cityscapes"]),
    ):
        given, job = spec(thin_paper, branch, "source_only"), Interrupted()
        with monkeypatch.context() as patched:
            patched.setattr(encoder, "find_encoder_weights", lambda name, _: tiny_state(name))
            train(given, job, source, classes)
        monkeypatch.setattr(encoder, "find_encoder_weights", no_weights)
        train(given, Interrupted(job.state), source, classes)
        with pytest.raises(WeightsError):
            train(given, Interrupted(), source, classes)


def test_source_images_keep_their_size_and_the_target_is_resized(thin_paper):
    sources, root = thin_paper.sources["city"], thin_paper.results.parent.parent
    for name, size in (("synthia", (64, 128)), ("gta5", (64, 128)), ("cityscapes", (48, 96))):
        assert sources.open(f"{name}/train")[0].image.shape[:2] == size
    resized = type(sources)(replace(sources.settings, resize_sources=True), root)
    assert resized.open("synthia/train")[0].image.shape[:2] == (48, 96)
    assert resized.fingerprint("synthia/train") != sources.fingerprint("synthia/train")


@pytest.mark.parametrize("noisy", ["student", "teacher"])
def test_noise_is_on_the_side_that_was_asked_for(thin_paper, noisy, monkeypatch):
    """Pseudo-labels come from clean crops; the other network sees the noise."""
    given = spec(thin_paper, "instance", "self_trained")
    seen, probabilities = {"rotated": [], "student": []}, []

    def noise(crops, *, blur, jitter_probability):
        probabilities.append(jitter_probability)
        return torch.full_like(crops, 0.25)

    def is_noise(image):
        return bool((photometry.denormalise(image) - 0.25).abs().max() < 1e-4)

    def rotated_view(teacher, crops, largest):
        seen["rotated"].append(bool((crops == 0.25).all()))
        return original(teacher, crops, largest)

    original = instance.rotated_view
    monkeypatch.setattr(instance.photometry, "photometric_noise", noise)
    monkeypatch.setattr(instance, "rotated_view", rotated_view)
    build = instance.build_instance

    def watched(network, **options):
        model = build(network, **options)
        model.register_forward_pre_hook(
            lambda module, inputs: seen["student"].append(is_noise(inputs[0])) if module.training else None
        )
        return model

    monkeypatch.setattr(instance, "build_instance", watched)
    city = thin_paper.sources["city"]
    target = city.open("cityscapes/train:unlabelled")
    masks = [torch.zeros(48, 96, dtype=torch.uint8).numpy() for _ in target]
    start = build(given.network, pretrained=False).state_dict()
    instance.instance_self_train(
        replace(given, noise_on=noisy, source_share=0.0), Interrupted(), start,
        city.open("synthia/train"), target, masks,
        semantic.LABEL_SETS["cityscapes"], {"bandwidth": 0.5, "delta_dist": 2.0},
    )  # fmt: skip
    assert probabilities == [0.8]
    assert seen == {"rotated": [noisy == "teacher"], "student": [noisy == "student"]}


def test_the_target_batch_of_abn_has_its_own_size(thin_paper):
    found = []

    class Statistics(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, image):
            found.append(tuple(image.shape))
            return self.norm(image)

    city = thin_paper.sources["city"]
    source, target = city.open("synthia/train"), city.open("cityscapes/train:unlabelled")
    batch_norm.adapt_batch_norm(spec(thin_paper, "semantic", "abn"), Statistics(), source, target)
    assert found == [(3, 3, 48, 96), (2, 3, 48, 96)] * 2
