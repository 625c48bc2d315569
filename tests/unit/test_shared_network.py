"""One network for mask and embedding: its parts, both trainings, and a ladder scored with one parent."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from test_odd_sizes import EMBEDDING, N_CLASSES, SAC, SEMANTIC, Once, crop, streets

from panolib.config import ProfileError
from panolib.dry_run import make_plan
from panolib.inference.predict import predict_image
from panolib.labels import CITYSCAPES
from panolib.load import load
from panolib.losses.embedding import embedding_loss
from panolib.models.shared import SharedNetwork
from panolib.profiles import load_yaml, project_root
from panolib.report.rows import rows
from panolib.study.export import export_run
from panolib.training import shared as training
from panolib.training.run_specs import SharedBaselineSpec, SharedSelfTrainingSpec
from panolib.training.setup import build_instance, build_optimizer, build_semantic, build_shared
from panolib.training.specs import EncoderSpec, InstanceNetwork, SemanticNetwork, SharedNetworks
from panolib.training.teacher import make_teacher, update_teacher

ENCODER = EncoderSpec("test_efficientnet", None)
NETWORKS = SharedNetworks(
    SemanticNetwork("v3+", ENCODER, 8, (1, 2), head_channels=16),
    InstanceNetwork(
        encoder=ENCODER, embedding_dim=4, decoder_channels=(8, 8, 8, 8), output_stride=2,
        coordinates="embedding", coordinate_length=4.0,
    ),
)
BASELINE = SharedBaselineSpec(
    **EMBEDDING, network=NETWORKS, augmentation=crop((32, 48)), selection="a", n_selection=1,
    bandwidths=(0.5,), merge_distances=(0.0,), validation="c", embedding_weight=0.5,
)  # fmt: skip
SELF_TRAINING = SharedSelfTrainingSpec(
    **SEMANTIC | SAC | {name: EMBEDDING[name] for name in ("weights", "margins", "min_area")},
    network=NETWORKS, augmentation=crop((32, 48)), fusion_stride=2, embedding_weight=0.5,
    algorithm="mean_shift_grid", min_stability=None, rotation=90.0,
)  # fmt: skip
CHOSEN = {"bandwidth": 0.5, "delta_dist": 1.0}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# ---- the network


def test_both_networks_are_whole_and_the_encoder_is_there_once():
    model = build_shared(NETWORKS, N_CLASSES).eval()
    image = torch.randn(2, 3, 33, 50)
    logits, embeddings = model(image)
    torch.testing.assert_close(model.semantic(image), logits)
    torch.testing.assert_close(model.instance(image), embeddings)
    assert embeddings.shape == (2, 4, 17, 25)
    alone = build_semantic(NETWORKS.semantic, N_CLASSES), build_instance(NETWORKS.instance)
    n = [sum(p.numel() for p in network.parameters()) for network in (*alone, alone[0].encoder, model)]
    assert n[3] == n[0] + n[1] - n[2]
    heads = logits.square().sum(), embeddings.square().sum()
    for loss in heads:  # both teach it
        found = torch.autograd.grad(loss, list(model.encoder.parameters()), retain_graph=True)
        assert all(gradient.abs().sum() > 0 for gradient in found)


def test_a_copy_and_a_loaded_state_share_their_encoder_too():
    student, other = build_shared(NETWORKS, N_CLASSES), build_shared(NETWORKS, N_CLASSES)
    other.load_state_dict(student.state_dict())
    teacher = make_teacher(student)
    assert teacher.semantic.encoder is teacher.instance.encoder is not student.encoder
    image = torch.randn(1, 3, 32, 32)
    for found, expected in zip(other.eval()(image), student.eval()(image)):
        torch.testing.assert_close(found, expected)
    before = teacher.encoder.stages[0][0].weight.clone()
    with torch.no_grad():
        student.encoder.stages[0][0].weight += 1.0
    update_teacher(teacher, student, decay=0.75)  # moved once, not once for each head
    torch.testing.assert_close(teacher.encoder.stages[0][0].weight, before + 0.25)


def test_its_encoder_learns_at_the_encoders_rate():
    own = {"encoder": EncoderSpec("tf_efficientnet_lite0", "package")}  # without weights it is new, too
    networks = SharedNetworks(replace(NETWORKS.semantic, **own), replace(NETWORKS.instance, **own))
    model = build_shared(networks, N_CLASSES, pretrained=False)
    optimiser = replace(BASELINE.optimiser, lr=0.01, head_lr_scale=10.0)
    groups = build_optimizer(optimiser, model, encoder=training.ENCODER).param_groups
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters())) == sum(len(group["params"]) for group in groups)
    assert {rates[id(p)] for p in model.encoder.parameters()} == {0.01}
    heads = [p for name, p in model.named_parameters() if not name.startswith(training.ENCODER)]
    assert {round(rates[id(p)], 9) for p in heads} == {0.1}


def test_networks_that_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"encoder: expected one for both .*frozen=0.*frozen=1"):
        replace(NETWORKS, instance=replace(NETWORKS.instance, encoder=replace(ENCODER, frozen=1)))
    with pytest.raises(ValueError, match="x and y in the input"):
        replace(NETWORKS, instance=replace(NETWORKS.instance, coordinates="input", coordinate_length=None))
    with pytest.raises(ValueError, match="expected a DeepLab"):
        replace(NETWORKS, semantic=replace(NETWORKS.semantic, version="bisenet"))
    with pytest.raises(ValueError, match="an encoder each"):
        SharedNetwork(build_semantic(NETWORKS.semantic, 3), build_instance(NETWORKS.instance))
    with pytest.raises(ValueError, match="painted: expected none"):
        replace(SELF_TRAINING, painted="true")


# ---- training


def test_the_loss_of_labelled_images_is_that_of_both_heads():
    model = build_shared(NETWORKS, N_CLASSES).eval()  # without dropout
    batch = training.LabelledBatches(streets((40, 61)), 2, BASELINE.augmentation, training.LABELS)(0)
    once = training.labelled_terms(BASELINE, model, batch, CITYSCAPES, 0)
    twice = training.labelled_terms(replace(BASELINE, embedding_weight=1.0), model, batch, CITYSCAPES, 0)
    assert list(once) == [
        "cross_entropy", "pull", "push", "regulariser", "object_dice", "unlabelled_push"
    ]
    for name, term in once.items():
        factor = 1.0 if name == "cross_entropy" else 2.0
        torch.testing.assert_close(twice[name], factor * term)


def self_trained(spec, job, state):
    source, target = streets((40, 61)), streets((32, 48))
    return training.shared_self_train(spec, job, state, source, target, CITYSCAPES, CHOSEN)


def test_a_network_trains_and_trains_itself(monkeypatch):
    job = Once()
    model = training.train_shared_baseline(BASELINE, job, streets((40, 61)), CITYSCAPES)
    job.assert_finite()
    seen = {}

    def loss(embeddings, labels, **options):
        if "teacher_embeddings" in options:
            seen.update(options, labels=labels)
        return embedding_loss(embeddings, labels, **options)

    monkeypatch.setattr(training, "embedding_loss", loss)
    state = {name: value.clone() for name, value in model.module.state_dict().items()}
    job = Once()
    student, teacher = self_trained(replace(SELF_TRAINING, iterations=2), job, state)
    job.assert_finite()
    assert {"self_training", "consistency", "object_dice", "pseudo_instances"} <= set(job.logged)
    assert seen["labels"].shape == (4, 16, 24)  # two views of two images
    assert not (seen["labels"][seen["ignore"]] > 0).any()
    assert seen["coordinates"].shape == (2, 16, 24)
    for network in (student.module, teacher):
        moved = network.encoder.stages[0][0].weight - state["semantic.encoder.stages.0.0.weight"]
        assert moved.abs().sum() > 0


def test_the_control_does_not_learn_from_the_target(monkeypatch):
    state = build_shared(NETWORKS, N_CLASSES).state_dict()
    monkeypatch.setattr(training, "labels_of_views", None)
    job = Once()
    self_trained(replace(SELF_TRAINING, target_weight=0.0, iterations=2), job, state)
    job.assert_finite()
    assert "target_loss" not in job.logged


# ---- the ladder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("shared")
    profile = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
    city = profile["city"]
    city["data"]["embedded"] |= {"n_synthia": 8, "n_gta5": 6, "n_train": 4, "n_val": 2}
    city["data"] |= {"n_val_synthia": 2, "n_val_gta5": 1, "mix_requires": ["car"]}
    for section in ("semantic_baseline", "self_training", "instance_baseline", "instance_self_training"):
        city[section]["iterations"] = 2
    city["shared"] = {
        "embedding_weight": 0.5,
        "network": {"instance": {"coordinates": "none"}},
        "baseline": {"optimiser": {"lr": 0.25}},
        "self_training": {"weights": {"consistency": 0.25}},
    }
    city["instance_variants"] = {
        "far": {
            "network": {"coordinates": "embedding", "coordinate_length": 8.0}, "merge_distances": [0.5]
        }
    }  # fmt: skip
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path, load(path, root=root)


def test_a_section_declares_a_ladder_of_one_network(tiny):
    path, loaded = tiny
    runs = {tag.run for tag in loaded.tags if tag.experiment == "city shared"}
    rungs = ("source_only", "abn", "adabn", "control", "self_trained", "oracle")
    assert runs == {
        name for rung in rungs for name in (f"city-shared-{rung}-s0", f"city-panoptic-{rung}-shared-s0")
    }
    baseline, own = (loaded.runs[f"city-shared-{rung}-s0"].spec for rung in ("source_only", "self_trained"))
    two = loaded.runs["city-instance-source_only-s0"].spec
    assert baseline.optimiser == replace(two.optimiser, lr=0.25) and baseline.margins == two.margins
    assert (own.weights.consistency, own.weights.pull, own.embedding_weight) == (0.25, 1.0, 0.5)
    assert own.optimiser == loaded.runs["city-semantic-self_trained-s0"].spec.optimiser
    assert own.network == baseline.network and own.network.instance.coordinates == "none"
    control = loaded.runs["city-shared-control-s0"].spec
    assert control == replace(own, target_weight=0.0)
    plan = make_plan(loaded, [loaded.runs["city-shared-self_trained-s0"]], workers=1)
    n = sum(parameter.numel() for parameter in build_shared(own.network, N_CLASSES).parameters())
    sizes = [row[5] for row in plan.rows[1:]]  # of baseline, statistics and self-training
    assert sizes == [f"{round(n / 1e6, 2)}"] * 3
    profile = yaml.safe_load(path.read_text())
    profile["city"]["shared"]["baseline"] = {"iteration": 3}
    wrong = path.with_name("wrong.yaml")
    wrong.write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match=r"city\.shared: iteration: unknown key"):
        load(wrong, root=path.parent)


def test_its_runs_are_trained_scored_and_exported_with_one_parent_in_both_roles(tiny, tmp_path):
    _, loaded = tiny
    loaded.sources["city"].prepare(progress=False)
    record = loaded.get("city-panoptic-self_trained-shared-s0")
    assert 0 <= record.metrics["pq_19"] <= 1
    run = loaded.runs["city-shared-self_trained-s0"]
    own = loaded.get(run.name).metrics
    assert own["iou"] == pytest.approx(record.metrics["iou"], nan_ok=True)  # the same masks
    assert "teacher" in own
    model = build_shared(run.spec.network, N_CLASSES)
    model.load_state_dict(loaded.store.final_state(run)["model"])
    sample = loaded.sources["city"].open("cityscapes/val")[0]
    found = predict_image(model.semantic, model.instance, sample)
    assert found.embeddings.shape[1:] == tuple(side // 2 for side in sample.image.shape[:2])
    assert torch.isfinite(found.embeddings).all()
    written = export_run(loaded.store, loaded.sources, record.run, tmp_path / "export")
    assert written["panoptic"] == written["semantic"] == 2


def test_variants_of_the_embeddings_stand_beside_the_ladders_on_target_and_source(tiny):
    path, loaded = tiny
    loaded.sources["city"].prepare(progress=False)
    table = rows(loaded, "city embeddings", branch="panoptic", instances="embeddings", metric="pq_19")
    found = table[["network", "data_set"]].drop_duplicates().to_numpy().tolist()
    assert sorted(found) == [
        [name, data_set] for name in ("far", "ladder") for data_set in ("cityscapes/val", "synthia/val")
    ]
    ladder, far = (loaded.runs[f"city-instance-source_only-{name}s0"] for name in ("", "far-"))
    assert far.spec.network == replace(ladder.spec.network, coordinates="embedding", coordinate_length=8.0)
    assert far.spec == replace(ladder.spec, network=far.spec.network, merge_distances=(0.5,))
    assert loaded.get(far.name).metrics["delta_dist"] == 0.5
    scores = loaded.runs["city-panoptic-source_only-far.source-s0"]
    assert dict(scores.parents)["clustering"] == dict(scores.parents)["instance"] == far
    profile = yaml.safe_load(path.read_text())
    for name, message in (("source", "expected a name, found 'source'"), ("Far", "city-instance")):
        profile["city"]["instance_variants"] = {name: {}}
        path.with_name("wrong.yaml").write_text(yaml.safe_dump(profile))
        with pytest.raises(ProfileError, match=message):
            load(path.with_name("wrong.yaml"), root=path.parent)
