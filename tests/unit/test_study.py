"""The study end to end on a tiny profile: what self-training may read, resuming, and the grid of runs."""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from killed import train_and_die

from panolib.config import ProfileError
from panolib.data.domains import RealData
from panolib.data.errors import MissingData
from panolib.data.readers.camvid import CamVidSources
from panolib.lab.run import MissingRun
from panolib.load import load
from panolib.losses.embedding import EmbeddingLossWeights
from panolib.profiles import load_yaml, project_root
from panolib.study import study
from panolib.training.crops import LabelledBatches

PROFILES = project_root(Path(__file__).parent) / "notebooks" / "profiles"
ITERATIONS = 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """(folder, profile path): the smoke profile with a handful of images and iterations."""
    root = tmp_path_factory.mktemp("study")
    profile = load_yaml(PROFILES / "smoke.yaml")
    profile["city"]["data"]["embedded"] |= {"n_synthia": 14, "n_gta5": 24, "n_train": 4, "n_val": 2}
    profile["city"]["data"] |= {"n_val_synthia": 2, "n_val_gta5": 1, "mix_requires": ["truck"]}
    profile["city"]["gap"]["n_images"] = 1
    for section in ("semantic_baseline", "self_training", "instance_baseline", "instance_self_training"):
        profile["city"][section]["iterations"] = ITERATIONS
    profile["city"]["self_training"]["ema_interval"] = 1
    profile["experiments"]["painted_share"] = 0.0
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    load(path, root=root).sources["city"].prepare(progress=False)
    return root, path


@pytest.fixture(scope="module")
def trained(tiny):
    """The tiny study with the semantic and instance ladders of the city trained."""
    root, path = tiny
    loaded = load(path, root=root)
    for tag in loaded.tags:
        if tag.experiment == "city ladder":
            loaded.get(tag.run)
    return loaded


def test_self_training_never_reads_target_labels(tiny, trained, tmp_path):
    """With the target's train labels deleted, both self-trainings run and give the same numbers."""
    root, path = tiny
    shutil.copytree(root / "cache", tmp_path / "cache")
    labels = list((tmp_path / "cache").rglob("gtFine/train"))
    assert len(labels) == 1
    shutil.rmtree(labels[0])

    blind = load(path, root=tmp_path)
    for kind in ("semantic", "instance"):
        name = study.run_name("city", kind, "self_trained", 0)
        ours, theirs = (s.store.final_state(s.runs[name])["model"] for s in (blind, trained))
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
    with pytest.raises(Exception, match="gtFine"):  # the oracle does need them
        blind.get(study.run_name("city", "semantic", "oracle", 0))


def test_rungs_differ_in_the_statistics_only(trained):
    """ABN and AdaBN share every weight with source_only; self-training does not."""
    states = {
        rung: trained.store.final_state(trained.runs[study.run_name("city", "semantic", rung, 0)])["model"]
        for rung in ("source_only", "abn", "adabn", "self_trained")
    }
    for name, weight in states["source_only"].items():
        is_statistic = "running" in name or "num_batches" in name
        for rung in ("abn", "adabn"):
            assert is_statistic or torch.equal(weight, states[rung][name]), (rung, name)
    assert any(
        not torch.equal(states["adabn"][n], states["self_trained"][n]) for n in states["adabn"] if "conv" in n
    )
    running, frozen = "encoder.stages.1.0.bn1.running_mean", "encoder.stages.0.1.running_mean"
    for rung in ("abn", "adabn", "self_trained"):
        assert torch.equal(states["source_only"][frozen], states[rung][frozen]), rung
    assert not torch.equal(states["source_only"][running], states["abn"][running])
    assert not torch.equal(states["abn"][running], states["adabn"][running])


def test_panoptic_metrics_are_fractions_with_their_controls(trained):
    metrics = trained.get(study.run_name("city", "panoptic", "self_trained", 0)).metrics
    assert set(metrics["threat"]) == {
        f"{method} in {mask} masks"
        for method in ("embedding", "connected_components")
        for mask in ("predicted", "true")
    }
    for name in ("pq_19", "sq_19", "rq_19", "pq_plus_19", "pq_16", "miou_19"):
        assert np.isnan(metrics[name]) or 0 <= metrics[name] <= 1, name
    assert metrics["n_images"] == 2


def test_every_notebook_run_is_in_the_study(trained):
    for notebook, names in trained.notebooks.items():
        for name in names:
            assert name in trained.runs, (notebook, name)
    keys = {run.name: run.key for run in trained.runs.values()}
    assert len(set(keys.values())) == len(keys)


def test_a_section_inherits_from_the_baseline_of_its_branch_unless_it_says_otherwise(tiny, tmp_path):
    root, path = tiny
    profile = load_yaml(path)
    own = profile["city"]["semantic_baseline"]["augmentation"] | {"jitter": 0.125}
    profile["city"]["self_training"]["augmentation"] = own
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(profile))
    specs = {name: run.spec for name, run in load(changed, root=root).runs.items()}
    assert specs["city-semantic-self_trained-s0"].augmentation.jitter == 0.125
    baseline = specs["city-instance-source_only-s0"]
    for name in ("augmentation", "weights", "margins", "min_area", "network"):
        assert getattr(specs["city-instance-self_trained-s0"], name) == getattr(baseline, name)


def test_weights_and_margins_set_where_they_act_are_those_of_every_experiment(tiny, tmp_path):
    root, path = tiny
    profile = load_yaml(path)
    section = profile["city"]["instance_self_training"]
    section["weights"] = {"push": 0.5, "consistency": 0.25}  # the others: as in the baseline
    section["margins"] = {"delta_dist": 1.5}
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(profile))
    runs = [run for run in load(changed, root=root).runs.values() if run.domain == "city"]
    specs = {run.variant: run.spec for run in runs if run.kind == "instance_self_training"}
    assert {name.partition(".")[0] for name in specs} >= {"", "consistency", "mean_shift_plus", "crops"}
    for variant, found in specs.items():
        weight = float(variant.removeprefix("consistency.")) if "consistency" in variant else 0.25
        assert found.weights == EmbeddingLossWeights(push=0.5, consistency=weight), variant
        assert (found.margins.delta_var, found.margins.delta_dist) == (0.5, 1.5), variant
    (baseline,) = {run.spec.weights for run in runs if run.kind == "instance_baseline"}
    assert baseline == EmbeddingLossWeights()


def test_evaluation_leaves_weights_and_buffers_alone(trained):
    """Scoring a network twice changes nothing in it."""
    from panolib.labels import CITYSCAPES
    from panolib.scoring import evaluate
    from panolib.training.setup import build_semantic

    run = trained.runs[study.run_name("city", "semantic", "source_only", 0)]
    model = build_semantic(run.spec.network, 19)
    model.load_state_dict(trained.store.final_state(run)["model"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = trained.sources["city"].open("cityscapes/val")
    first, second = (evaluate.score_semantic(model, data, CITYSCAPES) for _ in range(2))
    assert np.array_equal(list(first["iou"].values()), list(second["iou"].values()), equal_nan=True)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_batches_do_not_depend_on_where_training_started(trained):
    from panolib.data.loading import batches

    spec = trained.runs[study.run_name("city", "semantic", "source_only", 0)].spec
    stream = LabelledBatches(trained.sources["city"].open(spec.source), 2, spec.augmentation)
    whole = list(batches(stream, seed=5, start=0, stop=4))
    resumed = list(batches(stream, seed=5, start=2, stop=4))
    for a, b in zip(whole[2:], resumed, strict=True):
        assert torch.equal(a["image"], b["image"]) and torch.equal(a["semantic"], b["semantic"])


@pytest.mark.parametrize("rung", ["source_only", "self_trained"])
def test_a_monitor_changes_no_weight(trained, rung):
    runs = [trained.runs[study.run_name("city", "semantic", rung, 0, name)] for name in ("", "monitored")]
    plain, monitored = (trained.get(run.name) for run in runs)
    ours, theirs = (trained.store.final_state(run)["model"] for run in runs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    scores = monitored.curves["miou cityscapes/val"]
    assert monitored.curves["iteration"].tolist() == list(range(ITERATIONS + 1))
    assert scores.notna().tolist() == [True] + [False] * (ITERATIONS - 1) + [True]
    assert monitored.curves["loss"].iloc[:ITERATIONS].equals(plain.curves["loss"])
    assert scores.iloc[-1] == pytest.approx(monitored.metrics["miou_19"])  # both on the two val images


def test_painting_no_instance_changes_no_weight_and_all_of_them_do(trained):
    """A share of 0, of true as of predicted ones, or of 1."""
    runs = {
        kind: trained.runs[study.run_name("city", "semantic", "self_trained", 0, f"painted.{kind}")]
        for kind in ("none", "true", "predicted")
    }
    assert runs["true"].spec.painted_share == 0  # of the tiny profile
    for name, kind, share in (("all", "true", 1.0), ("predicted", "predicted", 0.0)):
        run, spec = runs[kind], replace(runs[kind].spec, painted_share=share)
        runs[name] = replace(run, name=f"{run.name}.{name}", spec=spec)
    coverage = {kind: trained.store.get(run).curves["coverage"] for kind, run in runs.items()}
    states = {kind: trained.store.final_state(run)["model"] for kind, run in runs.items()}
    for kind in ("true", "predicted"):
        assert all(torch.equal(states["none"][key], value) for key, value in states[kind].items()), kind
    assert any(not torch.equal(states["none"][key], value) for key, value in states["all"].items())
    assert coverage["all"][0] > coverage["none"][0]


@pytest.mark.parametrize(
    "name",
    [
        "city-semantic-self_trained-s0",
        "city-semantic-self_trained-monitored-s0",
        "city-instance-self_trained-s0",
    ],
)
def test_sigkill_then_resume_gives_the_same_numbers(tiny, trained, tmp_path, name):
    """A self-training killed after two checkpoints and resumed equals the uninterrupted one bit for bit."""
    root, path = tiny
    trained.get(name)
    for folder in ("cache", "results"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.rmtree(tmp_path / "results" / "tiny" / "runs" / name)
    killed = load(path, root=tmp_path)
    train_and_die(killed.store, killed.runs[name], ITERATIONS - 1)

    again = load(path, root=tmp_path)
    assert again.store.state(again.runs[name]) == "partial"
    resumed, reference = again.get(name), trained.get(name)
    assert resumed.curves.equals(reference.curves)
    assert str(resumed.metrics) == str(reference.metrics)
    states = [s.store.final_state(s.runs[name])["model"] for s in (again, trained)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
    work = tmp_path / "results" / "tiny" / "work"
    left = [entry.name for entry in work.iterdir() if entry.name != ".gitignore" and entry.suffix != ".lock"]
    assert left == []


def test_replay_without_training_names_the_missing_run(tiny, tmp_path):
    _, path = tiny
    with pytest.raises(MissingRun, match="city-semantic-source_only-s0"):
        load(path, root=tmp_path, train=False).get("city-semantic-source_only-s0")


def test_committed_notebooks_can_be_replayed_without_training(tmp_path, monkeypatch):
    """A setting changed without a new record fails here, not as an hour of training in a notebook."""
    monkeypatch.setenv("PANOLIB_TRAIN", "0")
    loaded = load("cpu")
    notebooks = (project_root() / "notebooks").glob("*.ipynb")
    executed = [path for path in notebooks if "output_type" in path.read_text()]
    assert len(executed) >= 5
    names = {name for path in executed for name in loaded.notebooks[path.stem]}
    states = {name: loaded.store.state(loaded.runs[name]) for name in sorted(names)}
    assert {name: state for name, state in states.items() if state != "recorded"} == {}
    with pytest.raises(MissingRun):
        load("cpu", root=tmp_path).get(min(names))


def test_unknown_profile_key_names_file_and_key(tiny, tmp_path):
    _, path = tiny
    profile = load_yaml(path)
    profile["city"]["self_training"]["focal_exponnent"] = 2.0
    bad = tmp_path / "bad.yaml"
    bad.write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match=r"bad\.yaml.*self_training.*focal_exponnent"):
        load(bad, root=tmp_path)


@pytest.mark.parametrize("name", ["smoke", "cpu", "gpu", "gpu_resnet50", "paper"])
def test_every_profile_builds_its_grid(name, tmp_path):
    """All profiles give the same ladder with the same code; some add rungs."""
    profile = load_yaml(PROFILES / f"{name}.yaml")
    if profile["city"]["data"]["embedded"] is None:
        for folder in ("synthia", "gta5", "cityscapes"):
            (tmp_path / profile["city"]["data"][folder]).mkdir(parents=True)
    profile["nuclei"]["data"]["fingerprint"] = "any"
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(profile))
    loaded = load(path, root=tmp_path)
    rungs = {run.split("-")[2] for run in loaded.runs if run.split("-")[1:2] == ["panoptic"]}
    assert set(study.RUNGS) <= rungs
    assert name not in ("smoke", "paper") or rungs - {study.TEACHER} == set(study.RUNGS)


def test_non_finite_loss_is_one_clear_error_and_records_nothing(tiny, trained, tmp_path, monkeypatch):
    from panolib.training import semantic

    root, path = tiny
    shutil.copytree(root / "cache", tmp_path / "cache")
    monkeypatch.setattr(semantic, "cross_entropy", lambda logits, labels: logits.sum() * float("nan"))
    loaded = load(path, root=tmp_path)
    name = study.run_name("city", "semantic", "source_only", 0)
    with pytest.raises(FloatingPointError, match="iteration 0"):
        loaded.get(name)
    assert loaded.store.state(loaded.runs[name]) == "missing"


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"miou_2": 0.436, "iou": {"background": 0.872, "nucleus": 0.0}}, "miou_2 43.6 %, objects 0 %"),
        ({"pq_2": 0.436, "pq": {"background": 0.872, "nucleus": 0.0}}, "pq_2 43.6 %, objects 0 %"),
        ({"miou_2": 0.9, "iou": {"background": 0.9, "nucleus": float("nan")}}, "miou_2 90.0 %"),
        ({"miou_2": 0.7, "iou": {"background": 0.9, "nucleus": 0.5}}, "miou_2 70.0 %"),
        ({"miou_2": 0.7}, "miou_2 70.0 %"),
    ],
)
def test_a_mean_that_is_all_background_is_told(metrics, said):
    run = SimpleNamespace(spec=SimpleNamespace(label_set="nuclei"))
    assert study.Study.headline(None, SimpleNamespace(metrics=metrics, run=run)) == said


def test_seeds_of_iterations_are_far_apart():
    from panolib.data.loading import iteration_seed

    seeds = {
        iteration_seed(s, i, stream) for s in range(3) for i in range(50) for stream in ("batch", "step")
    }
    assert len(seeds) == 300


def test_real_streets_are_a_domain_beside_the_city(tmp_path):
    """CamVid is opened by its own folder; every other name of the domain is the city's data set."""
    city = FakeCity()
    settings = RealData(root="camvid", size=(6, 8), fingerprint=None)
    streets = CamVidSources(settings, tmp_path, city)
    assert not streets.available()
    with pytest.raises(MissingData, match="PANOLIB_CAMVID_ROOT"):
        streets.open("camvid/val")

    for split, value in (("train", 3), ("val", 8)):
        for folder in (split, f"{split}annot"):
            (tmp_path / "camvid" / folder).mkdir(parents=True)
        Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(tmp_path / "camvid" / split / "a.png")
        labels = Image.fromarray(np.full((12, 16), value, np.uint8))
        labels.save(tmp_path / "camvid" / f"{split}annot" / "a.png")
    assert streets.available()
    assert streets.open("camvid/val")[0].semantic.tolist() == np.full((6, 8), 8).tolist()
    assert streets.open("camvid/train:unlabelled")[0].semantic is None
    assert streets.open("mix/train") == "the city's mix/train"
    assert streets.fingerprint("mix/train") == "print of mix/train"
    assert streets.fingerprint("camvid/train") != streets.fingerprint("camvid/val")

    wrong = CamVidSources(RealData("camvid", None, "0" * 16), tmp_path, city)
    with pytest.raises(ValueError, match="set fingerprint in the data of camvid to null"):
        wrong.open("camvid/val")


class FakeCity:
    names = ("mix/train",)

    def open(self, name):
        return f"the city's {name}"

    def fingerprint(self, name):
        return f"print of {name}"

    def available(self):
        return True


@pytest.mark.parametrize("value", ["false", "True", 1, None])
def test_a_notebook_may_not_retrain_by_a_text(value):
    with pytest.raises(TypeError, match=f"notebook parameter retrain is {value!r}, expected True or False"):
        load("smoke", retrain=value)


def test_a_profile_is_a_name_or_a_path():
    with pytest.raises(TypeError, match="profile is 5, expected its name as a text"):
        load(5)
