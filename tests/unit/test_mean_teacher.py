"""The peer: what torch-em is handed, resuming, the watershed's settings, scores, declared runs.

Most tests run its flow with a stand-in (`stand_in_torch_em`); those at the end need the package itself.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import itertools
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import stand_in_torch_em

from panolib.config import ProfileError
from panolib.data.render.nuclei_scenes import render_nuclei
from panolib.data.samples import Sample
from panolib.inference.panoptic import panoptic_truth
from panolib.lab.run import MissingRun, Run
from panolib.lab.store import Store
from panolib.labels import NUCLEI
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.related.mean_teacher import kinds, training, watershed
from panolib.related.mean_teacher.kinds import PeerScoresSpec
from panolib.related.mean_teacher.library import PARTS, MissingTorchEm, PeerNetwork, build_peer, torch_em
from panolib.related.mean_teacher.training import Batches, MeanTeacherSpec, PeerSpec
from panolib.related.mean_teacher.watershed import WatershedGrid
from panolib.report import rows
from panolib.study.declared import make_kinds
from panolib.training.specs import Compute

SETTINGS = {
    "label_set": "nuclei", "source": "nuclei_scenes/train", "selection": "nuclei_scenes/val",
    "n_selection": 2, "network": PeerNetwork(depth=2, features=4), "lr": 0.02, "crop": (32, 48),
    "batch_size": 2, "iterations": 7, "interval": 2, "seed": 3,
    "watershed": WatershedGrid((0.1, 0.5), (0.5,), (0, 20)),
    "compute": Compute("cpu", "32-true", 0, False),
}  # fmt: skip
SPEC = PeerSpec(**SETTINGS)
TEACHER = MeanTeacherSpec(
    **SETTINGS, target="nuclei/train:unlabelled", n_target=1, ema_decay=0.5, confidence=None
)
SECTION = {
    "network": {"depth": 4, "features": 16}, "lr": 0.001, "crop": [128, 128], "batch_size": 4,
    "iterations": 20, "interval": 10, "n_selection": 6, "n_samples": 1,
    "watershed": {"seeds": [0.3, 0.5], "mask": [0.5], "min_size": [0, 25]},
    "adaptation": {"lr": 0.001, "iterations": 10, "batch_size": 2, "n_target": 2, "ema_decay": 0.99,
                   "confidence": None},
}  # fmt: skip
EVERYTHING = {"seeds": 0.5, "mask": 0.5, "min_size": 0}
NO_PACKAGE = importlib.util.find_spec("torch_em") is None


class Images(list):
    label_set, has_instances = NUCLEI, True


def images(n: int, seed: int, size: tuple[int, int] = (40, 60)) -> Images:
    height, width = size
    return Images(render_nuclei(seed=seed, index=i, height=height, width=width) for i in range(n))


class Sources:
    """The data sets of nuclei; a target whose labels cannot be read."""

    def __init__(self):
        target = images(3, seed=2, size=(36, 56))
        self.sets = {
            "nuclei_scenes/train": images(4, seed=0),
            "nuclei_scenes/val": images(2, seed=1),
            "nuclei/train:unlabelled": Images(Sample(s.image, None, None, None, s.id) for s in target),
            "nuclei/val": images(2, seed=5, size=(37, 41)),
        }

    def open(self, name):
        return self.sets[name]


def runs() -> dict[str, Run]:
    """A baseline, what goes on from it, and the scores of each."""
    common = {"domain": "nuclei", "branch": "peer", "variant": "torch_em"}
    found = {"source_only": Run(name="source_only", kind="peer_baseline", spec=SPEC, **common)}
    parents = (("start", found["source_only"]),)
    found["mean_teacher"] = Run(
        name="mean_teacher", kind="peer_mean_teacher", spec=TEACHER, parents=parents, **common
    )
    for name, rung, scored, setting in (
        ("source_only scores", "source_only", "teacher", "source"),  # there is one network only
        ("mean_teacher scores", "mean_teacher", "teacher", "source"),
        ("student scores", "mean_teacher", "student", "source"),
        ("default scores", "mean_teacher", "teacher", "package"),
    ):
        spec = PeerScoresSpec(
            label_set="nuclei", validation="nuclei/val", scored=scored, watershed=setting, n_samples=1,
            compute=SPEC.compute, seed=3,
        )  # fmt: skip
        parents = (("peer", found[rung]),)
        found[name] = Run(
            name=name.replace(" ", "-"), kind="peer_scores", spec=spec, parents=parents, **common
        )
    return found


@pytest.fixture
def stand_in(monkeypatch):
    stand_in_torch_em.install(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path, make_kinds([kinds], {"nuclei": Sources()}), checkpoint_s=0.0)


# --- what torch-em is handed --------------------------------------------------------------------------------


def test_targets_are_foreground_and_boundary_of_a_crop(stand_in):
    data = images(2, seed=0)
    crops = training.labelled(SPEC, data, 2, None)
    image, target = crops[1]
    assert len(crops) == 2 and image.shape == (1, 32, 48) and target.shape == (2, 32, 48)
    assert abs(float(image.mean())) < 1e-5 and float(image.std()) == pytest.approx(1, abs=1e-3)
    foreground, boundary = target.bool()
    assert 0 < foreground.float().mean() < 1 and (foreground & boundary).any()


def test_views_of_the_target_are_two_and_need_no_label(stand_in):
    views = training.unlabelled(TEACHER, Sources().open("nuclei/train:unlabelled"))
    pairs = [views(0) for _ in range(20)]
    assert all(weak.shape == other.shape == (1, 32, 48) for weak, other in pairs)
    assert any(not torch.equal(weak, other) for weak, other in pairs)


def test_batches_depend_on_seed_name_and_number_alone(stand_in):
    def stream(**values):
        return Batches(crops.__getitem__, 2, **{"interval": 2, "seed": 3, "name": "source", **values})

    crops = training.labelled(SPEC, images(4, seed=0), 4, 4)
    loader = stream()
    first, second = list(loader), list(loader)
    assert len(loader) == 2 and loader.position == 4 and first[0][0].shape == (2, 1, 32, 48)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    again = list(stream(position=2))
    assert all(torch.equal(a, b) for old, new in zip(second, again) for a, b in zip(old, new))
    assert not torch.equal(first[0][0], second[0][0])
    for other in (stream(seed=4), stream(name="target")):
        assert not torch.equal(next(iter(other))[0], first[0][0])


def test_training_that_goes_on_sees_other_crops(stand_in):
    first, further = (
        next(iter(training._source_batches(SPEC, images(4, seed=0), start))) for start in (None, {})
    )
    assert not torch.equal(first[0], further[0])


# --- training -----------------------------------------------------------------------------------------------


def test_baseline_teacher_and_scores_are_recorded_like_any_run(stand_in, store):
    found = {name: store.get(run) for name, run in runs().items()}
    curves = found["mean_teacher"].curves
    assert curves["loss"].count() == 7 and curves["selection_loss"].count() == 4  # epochs of 2, 2, 2 and 1
    assert found["mean_teacher"].info["iterations"] == 7
    for name, networks in (("source_only", {"student": "model"}),
                           ("mean_teacher", {"student": "model", "teacher": "teacher"})):  # fmt: skip
        assert set(store.final_state(runs()[name])) == set(networks.values())
        assert set(found[name].metrics) == set(networks)
        for choice in found[name].metrics.values():
            scores = {tuple(row[key] for key in watershed.PACKAGE): row["pq"] for row in choice["grid"]}
            assert len(scores) == 4 and scores[tuple(choice["chosen"].values())] == max(scores.values())
    for name, choice in (
        ("source_only scores", found["source_only"].metrics["student"]["chosen"]),
        ("mean_teacher scores", found["mean_teacher"].metrics["teacher"]["chosen"]),
        ("student scores", found["mean_teacher"].metrics["student"]["chosen"]),
        ("default scores", watershed.PACKAGE),
    ):
        scores = found[name].metrics
        assert scores["chosen"] == choice and scores["n_images"] == 2
        assert {"pq_nucleus", "sq_nucleus", "rq_nucleus", "tp", "fp", "fn", "miou_2", "threat"} <= set(scores)
        assert set(found[name].samples) == {"00-image", "00-truth", "00-prediction"}


def test_counts_of_every_image_add_up_to_the_scores(stand_in, store):
    record = store.get(runs()["mean_teacher scores"])
    counts = record.counts["panoptic.watershed.void"]
    assert counts.shape == (2, 2, 5) and counts.sum() > 0
    for i, name in enumerate(("tp", "fp", "fn")):
        assert counts.sum(0)[1, i] == record.metrics[name]["nucleus"]


def test_teacher_and_student_are_scored_with_their_own_weights(stand_in, store):
    found = []

    def score(model, *_, **__):
        found.append(model.state_dict())
        return {}

    for name in ("mean_teacher scores", "student scores"):
        with mock.patch.object(kinds, "score_peer", score):
            store.get(runs()[name], anew=True)
    state = store.final_state(runs()["mean_teacher"])
    for network, scored in zip(("teacher", "model"), found):
        assert all(torch.equal(value, state[network][key]) for key, value in scored.items())


def test_the_student_learns_from_both_and_the_teacher_follows(stand_in, store):
    store.get(runs()["mean_teacher"])
    start = store.final_state(runs()["source_only"])["model"]
    state = store.final_state(runs()["mean_teacher"])
    for name, value in state["model"].items():
        assert not torch.equal(value, start[name]) and not torch.equal(value, state["teacher"][name])
    away = {key: sum(float((state[key][n] - start[n]).norm()) for n in start) for key in state}
    assert 0 < away["teacher"] < away["model"]


@pytest.mark.parametrize("rung", ["source_only", "mean_teacher"])
def test_a_killed_training_goes_on_bit_for_bit(rung, stand_in, store, tmp_path):
    run = runs()[rung]
    whole = store.get(run), store.final_state(run)
    other = Store(tmp_path / "other", store.kinds, checkpoint_s=0.0)
    other.get(runs()["source_only"]) if rung != "source_only" else None

    class Killed(Exception):
        pass

    def kill(self, state_fn, iteration):
        checkpoint(self, state_fn, iteration)
        if iteration == 4:
            raise Killed

    checkpoint = training.Job.checkpoint
    with mock.patch.object(training.Job, "checkpoint", kill), pytest.raises(Killed):
        other.get(run)
    again = other.get(run), other.final_state(run)
    assert whole[0].curves.equals(again[0].curves) and whole[0].metrics == again[0].metrics
    for name, state in whole[1].items():
        assert all(torch.equal(value, again[1][name][key]) for key, value in state.items())


def test_the_best_epoch_is_kept(stand_in, store):
    record = store.get(replace(runs()["source_only"], spec=replace(SPEC, lr=0.3, iterations=12)))
    losses = record.curves["selection_loss"].dropna()
    assert losses.min() < losses.iloc[-1]  # with such a rate the last epoch is not the best
    model = build_peer(SPEC.network)
    model.load_state_dict(store.final_state(record.run)["model"])
    crops = training._validation(SPEC, Sources().open(SPEC.selection))
    with torch.no_grad():
        loss = np.mean([float(stand_in_torch_em.DiceLoss()(model(image), target)) for image, target in crops])
    assert loss == pytest.approx(losses.min(), abs=1e-5)


# --- watershed and scores -----------------------------------------------------------------------------------


def perfect(sample: Sample) -> np.ndarray:
    """What a network without errors would predict."""
    target = stand_in_torch_em.BoundaryTransform(add_binary_target=True)(sample.instance)
    return target.astype(np.float32)


def test_settings_are_those_with_the_best_pq(stand_in):
    data = images(2, seed=1, size=(64, 64))
    grid = WatershedGrid((0.1, 0.9), (0.5,), (0, 10_000))
    with mock.patch.object(watershed, "predict_peer", lambda model, sample: 0.6 * perfect(sample)):
        found = watershed.choose_watershed(None, data, NUCLEI, grid)
    assert found["chosen"] == {"seeds": 0.1, "mask": 0.5, "min_size": 0}
    scores = {(row["seeds"], row["min_size"]): row["pq"] for row in found["grid"]}
    assert scores[0.1, 0] > 0 == scores[0.9, 0] == scores[0.1, 10_000]


def test_scores_count_what_was_found(stand_in):
    """Two of three nuclei are predicted, as they are."""
    instance = np.zeros((32, 48), np.int32)
    instance[4:14, 4:14], instance[4:14, 20:30], instance[18:28, 4:14] = 1, 2, 3
    semantic = (instance > 0).astype(np.uint8)
    sample = Sample(np.zeros((32, 48, 3), np.uint8), semantic, instance, np.zeros_like(semantic, bool), "a")
    seen = np.stack([(instance > 0) & (instance < 3), np.zeros_like(instance)]).astype(np.float32)
    with mock.patch.object(watershed, "predict_peer", lambda model, sample: seen):
        found = watershed.score_peer(
            None, Images([sample]), NUCLEI, EVERYTHING, n_samples=0, save_sample=lambda *_: None
        )
    counts = [found[name]["nucleus"] for name in ("tp", "fp", "fn")]
    assert counts == [2, 0, 1] and found["sq_nucleus"] == 1 and found["pq_nucleus"] == pytest.approx(0.8)
    truth = panoptic_truth(sample, NUCLEI)
    assert len(truth[1]) == 4 and found["iou"]["nucleus"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("minimum", [0, 50])
def test_instances_are_numbered_without_gaps(minimum, stand_in):
    """Of three parts the first is small, and the second lies outside of the mask."""
    foreground = np.zeros((32, 48), np.float32)
    foreground[2:5, 2:5], foreground[10:20, 2:12], foreground[10:20, 20:30] = 1, 0.4, 1
    prediction = np.stack([foreground, np.zeros_like(foreground)])
    found = watershed.watershed(prediction, {"seeds": 0.3, "mask": 0.5, "min_size": minimum})
    assert found.dtype == torch.int64 and found.unique().tolist() == list(range(3 if minimum == 0 else 2))
    data = Images([Sample(np.zeros((32, 48, 3), np.uint8), *truth_of(found.numpy()), "a")])
    with mock.patch.object(watershed, "predict_peer", lambda model, sample: prediction):
        scores = watershed.score_peer(
            None, data, NUCLEI, {"seeds": 0.3, "mask": 0.5, "min_size": minimum},
            n_samples=0, save_sample=lambda *_: None,
        )  # fmt: skip
    assert scores["pq_nucleus"] == 1


def truth_of(instance: np.ndarray) -> tuple[np.ndarray, ...]:
    """Semantic, instance and crowd map of nuclei."""
    return (instance > 0).astype(np.uint8), instance.astype(np.int32), np.zeros(instance.shape, bool)


def test_predictions_have_the_size_of_the_image(stand_in):
    sample = images(1, seed=0, size=(37, 41))[0]
    assert watershed.predict_peer(build_peer(SPEC.network), sample).shape == (2, 37, 41)


# --- the package is optional --------------------------------------------------------------------------------


def test_without_the_package_records_are_replayed_and_training_is_one_clear_error(store, monkeypatch):
    with monkeypatch.context() as with_package:
        stand_in_torch_em.install(with_package)
        recorded = store.get(runs()["mean_teacher scores"]).metrics
    monkeypatch.setitem(sys.modules, "torch_em", None)
    for part in PARTS:
        monkeypatch.setitem(sys.modules, f"torch_em.{part}", None)
    assert store.get(runs()["mean_teacher scores"]).metrics == recorded
    with pytest.raises(MissingTorchEm, match=r"pip install 'panolib\[peers\]'"):
        store.get(runs()["mean_teacher"], anew=True)
    with pytest.raises(MissingRun):
        Store(store.root / "none", store.kinds, train=False).get(runs()["mean_teacher"])


# --- declared runs ------------------------------------------------------------------------------------------


def study(tmp_path, peers: dict | None, **changes):
    profile = copy.deepcopy(load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml"))
    profile |= {"peers": peers, **changes}
    (tmp_path / "my.yaml").touch()
    with mock.patch("panolib.study.settings.load_yaml", lambda path: profile):
        return load(tmp_path / "my.yaml", root=tmp_path, train=False)


def test_a_section_switches_the_peer_on_and_changes_no_other_run(tmp_path):
    without, with_peers = study(tmp_path, None), study(tmp_path, SECTION)
    new = {name: run for name, run in with_peers.runs.items() if name not in without.runs}
    assert {name: run.key for name, run in without.runs.items()} == {
        name: run.key for name, run in with_peers.runs.items() if name not in new
    }
    assert {run.rung: run.kind for run in new.values() if run.branch == "peer"} == {
        "source_only": "peer_baseline", "control": "peer_baseline", "mean_teacher": "peer_mean_teacher"
    }  # fmt: skip
    scores = [(run.rung, run.variant) for run in new.values() if run.branch == "panoptic"]
    variants = ("torch_em", "torch_em.defaults")
    rungs = itertools.product(("source_only", "control", "mean_teacher"), variants)
    assert sorted(scores) == sorted([*rungs, ("mean_teacher", "torch_em.student")])
    assert set(new) <= set(with_peers.notebooks["08_nuclei"])
    start = new["nuclei-peer-source_only-torch_em-s0"]
    assert (start.spec.iterations, start.spec.batch_size) == (20, 4)
    for rung, n_source in (("control", 4), ("mean_teacher", 2)):  # as many crops, of the source and in all
        run = new[f"nuclei-peer-{rung}-torch_em-s0"]
        assert (run.spec.iterations, run.spec.batch_size, run.parents) == (10, n_source, (("start", start),))
    assert new["nuclei-peer-mean_teacher-torch_em-s0"].spec.target == "nuclei/train:unlabelled"


def test_settings_that_cannot_be_are_one_error(tmp_path):
    with pytest.raises(ProfileError, match=r"my\.yaml: peers: expected a section 'nuclei' beside it"):
        study(tmp_path, SECTION, nuclei=None)
    with pytest.raises(ProfileError, match=r"my\.yaml: peers: .*ema_decay"):
        study(tmp_path, {**SECTION, "adaptation": {**SECTION["adaptation"], "ema_decay": 2.0}})


def test_rows_are_those_of_the_classical_controls(stand_in, store):
    (inside, scores), (_, threat) = rows.PARTS["peer_scores"](store.get(runs()["mean_teacher scores"]))
    wanted = {"data_set": "nuclei/val", "instances": "watershed", "masks": "predicted", "leftover": "void"}
    assert inside == wanted and {"pq_nucleus", "tp"} <= set(scores) and "chosen" not in scores
    assert "threat_pooled" in threat


# --- with the package itself --------------------------------------------------------------------------------

needs_package = pytest.mark.skipif(NO_PACKAGE, reason="torch_em, of the extra `peers`, is not installed")


@needs_package
def test_the_package_trains_resumes_and_is_scored(store, tmp_path):
    test_a_killed_training_goes_on_bit_for_bit("mean_teacher", None, store, tmp_path)
    for name in ("mean_teacher scores", "student scores", "default scores"):
        assert 0 <= store.get(runs()[name]).metrics["pq_nucleus"] <= 1


@needs_package
def test_the_package_finds_what_a_perfect_network_predicts():
    for sample in images(3, seed=4, size=(128, 128)):
        foreground, boundary = perfect(sample)
        inner = np.stack([foreground, boundary * foreground])
        found = watershed.watershed(inner, EVERYTHING)
        truth = np.unique(sample.instance[sample.instance > 0])
        found = found.numpy()
        same = [np.bincount(found[sample.instance == k]).argmax() for k in truth]
        assert ((found > 0) <= (foreground > 0)).all()
        assert len(set(same) - {0}) >= 0.8 * len(truth)


@needs_package
@pytest.mark.parametrize("minimum", [0, 50])
def test_the_packages_instances_are_numbered_without_gaps(minimum):
    test_instances_are_numbered_without_gaps(minimum, None)


@needs_package
def test_defaults_are_the_packages_own():
    signature = inspect.signature(torch_em().util.segmentation.watershed_from_components)
    names = {"seeds": "threshold1", "mask": "threshold2", "min_size": "min_size"}
    assert {key: signature.parameters[name].default for key, name in names.items()} == watershed.PACKAGE


@needs_package
def test_the_network_is_the_packages_own():
    net = build_peer(PeerNetwork(depth=4, features=32))
    default = torch_em().model.UNet2d(in_channels=1, out_channels=2, final_activation="Sigmoid")
    assert [p.shape for p in net.parameters()] == [p.shape for p in default.parameters()]
    assert not list(net.buffers())
