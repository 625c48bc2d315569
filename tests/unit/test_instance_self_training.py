"""Self-training of instance networks: classes of its own, clustering options, no masks, and the monitor."""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from killed import train_and_die

from panolib.clustering.in_masks import cluster_in_class_masks, cluster_unguided
from panolib.inference.instances import predict_instances
from panolib.labels import CITYSCAPES, VOID
from panolib.load import load
from panolib.metrics.threat_score import ThreatScore
from panolib.profiles import load_yaml, project_root
from panolib.scoring import instance_monitor
from panolib.scoring.evaluate import threat_scores, widest_within
from panolib.scoring.instance_monitor import embedding_picture, undisturbed
from panolib.training.instance_targets import clustering_options, learned_ids, source_targets

PROFILES = project_root() / "notebooks" / "profiles"
ITERATIONS = 3
CAR, PERSON, ROAD = CITYSCAPES.ids_of(["car", "person", "road"])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A study in which a network trains in a second; its ladder is there up to self-training."""
    root = tmp_path_factory.mktemp("instances")
    profile = load_yaml(PROFILES / "smoke.yaml")
    city = profile["city"]
    city["data"]["embedded"] |= {"n_synthia": 14, "n_gta5": 24, "n_train": 4, "n_val": 2}
    city["data"] |= {"n_val_synthia": 2, "n_val_gta5": 1, "mix_requires": ["truck"]}
    for section in ("semantic_baseline", "self_training", "instance_baseline", "instance_self_training"):
        city[section]["iterations"] = ITERATIONS
    profile["experiments"] |= {"monitor_interval": 2, "monitor_images": 2, "shorter": None}
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    loaded = load(path, root=root)
    loaded.sources["city"].prepare(progress=False)
    return root, path, loaded


def weights(loaded, run):
    return loaded.store.final_state(run)["model"]


def changed(run, name, **values):
    return replace(run, name=name, spec=replace(run.spec, **values))


def true_masks(_, samples):
    """In place of `predicted_masks`: networks of three iterations predict no thing."""
    return [sample.semantic for sample in samples]


@pytest.fixture(scope="module")
def monitored(tiny):
    """A monitored run inside true masks, with a clustering that draws a subsample, and its record."""
    _, _, loaded = tiny
    run = loaded.runs["city-instance-self_trained-masks.100-s0"]
    run = changed(run, "city-monitored", algorithm="agglomerative", min_stability=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(instance_monitor, "predicted_masks", true_masks)
        return run, loaded.store.get(run)


def test_a_monitor_changes_no_weight(tiny, monitored):
    _, _, loaded = tiny
    run, record = monitored
    plain = changed(run, "city-plain", monitor=None)
    other = loaded.store.get(plain)
    ours, theirs = weights(loaded, run), weights(loaded, plain)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert record.curves["target_loss"].iloc[:ITERATIONS].equals(other.curves["target_loss"])
    assert not [column for column in other.curves if column.startswith(("tp", "loss", "clustering", "step"))]


def test_a_monitor_scores_the_start_its_intervals_and_the_end(monitored):
    run, record = monitored
    table = record.curves
    assert table["iteration"].tolist() == [0, 1, 2, 3]
    for name in run.spec.monitor.data:
        for column in ("tp", "fp", "fn", "loss"):
            assert table[f"{column} {name}"].notna().tolist() == [True, False, True, True]
        objects = (table[f"tp {name}"] + table[f"fn {name}"]).dropna()
        assert len(set(objects)) == 1 and objects.iloc[0] > 0  # the same true objects every time
        assert (table[f"tp {name}"] + table[f"fp {name}"]).sum() > 0  # something was clustered
    assert table["step_s"].iloc[:ITERATIONS].gt(table["clustering_s"].iloc[:ITERATIONS]).all()
    assert set(record.samples) == {"00-image", "00-embeddings", "00-clusters"}


def test_a_monitored_run_survives_a_kill(tiny, monitored, tmp_path, monkeypatch):
    root, path, _ = tiny
    run, reference = monitored
    for folder in ("cache", "results"):
        shutil.copytree(root / folder, tmp_path / folder)
    shutil.rmtree(tmp_path / "results" / "tiny" / "runs" / run.name)
    monkeypatch.setattr(instance_monitor, "predicted_masks", true_masks)
    train_and_die(load(path, root=tmp_path).store, run, 2)
    again = load(path, root=tmp_path)
    assert again.store.state(run) == "partial"
    timed = ["clustering_s", "step_s"]
    resumed = again.store.get(run).curves.drop(columns=timed)
    assert resumed.equals(reference.curves.drop(columns=timed))


def test_undisturbed_restores_modes_and_draws_also_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Dropout())
    model[0].eval()  # as a frozen layer inside a network that trains
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="inside"), undisturbed(model):
        assert not model.training and not model[1].training
        torch.rand(5)
        raise RuntimeError("inside")
    assert model.training and model[1].training and not model[0].training
    assert torch.equal(torch.rand(1), expected)


def test_corrected_masks_and_no_masks_change_the_pseudo_labels(tiny, monitored):
    """The predicted masks hold hardly a thing yet, so their pseudo-labels are few, as without masks."""
    _, _, loaded = tiny
    names = ("all.25", "masks.none")
    records = [loaded.get(f"city-instance-self_trained-{name}-s0") for name in names]
    for record in (*records, monitored[1]):
        assert np.isfinite(record.curves["target_loss"].dropna()).all()
    few = [record.curves["pseudo_instances"].max() for record in records]
    assert max(few) < monitored[1].curves["pseudo_instances"].max()


def test_every_algorithm_clusters_with_its_own_options(monitored):
    run, _ = monitored
    embeddings = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(0))
    semantic = torch.full((8, 8), CAR)
    chosen = {"bandwidth": 0.5, "delta_dist": 2.0}
    for algorithm in ("mean_shift", "mean_shift_plus", "agglomerative", "hdbscan", "connected_components"):
        spec = replace(run.spec, algorithm=algorithm)
        options = clustering_options(spec, CITYSCAPES, chosen, 0)
        labels, table = cluster_in_class_masks(
            embeddings, semantic, (CAR,), second_embeddings=embeddings, **options
        )
        assert labels.max() == len(table)


def test_rings_widen_the_bandwidth_or_the_linkage_and_zero_changes_nothing(monitored):
    run, _ = monitored
    chosen = {"bandwidth": 0.5, "delta_dist": 2.0}
    margins = replace(run.spec.margins, epsilon_0=0.25, epsilon_tau=10.0)
    late = 0.25 * np.exp(-1)
    for algorithm, ring in (
        ("mean_shift_plus", "bandwidth"),
        ("hdbscan", "bandwidth"),
        ("mean_shift", "bandwidth"),
        ("agglomerative", "delta_dist"),
    ):
        zero = replace(run.spec, algorithm=algorithm, margins=replace(margins, epsilon_0=0.0))
        found = clustering_options(zero, CITYSCAPES, chosen, 0)
        assert {name: found[name] for name in chosen} == chosen
        spec = replace(zero, margins=margins)
        for iteration, widening in ((0, 0.25), (10, late)):
            found = clustering_options(spec, CITYSCAPES, chosen, iteration)
            assert found[ring] == pytest.approx(chosen[ring] + widening)
            assert all(found[name] == chosen[name] for name in chosen if name != ring)
    assert chosen == {"bandwidth": 0.5, "delta_dist": 2.0}


def labelled_batch():
    """A car, a person and road; one pixel of void."""
    semantic = torch.tensor([[[CAR, CAR, PERSON, PERSON], [ROAD, ROAD, ROAD, VOID]]])
    instance = torch.tensor([[[1, 1, 2, 2], [0, 0, 0, 0]]])
    return {"semantic": semantic, "instance": instance, "crowd": torch.zeros(1, 2, 4, dtype=torch.long)}


def test_objects_of_other_classes_are_neither_labelled_nor_unlabelled():
    embeddings = torch.zeros(1, 8, 2, 4)
    labels, ignore = source_targets(labelled_batch(), embeddings, 1)
    assert (labels > 0).sum() == 4 and ignore.sum() == 1
    labels, ignore = source_targets(labelled_batch(), embeddings, 1, (CAR,))
    assert (labels > 0)[0].tolist() == [[True, True, False, False], [False] * 4]
    assert ignore[0].tolist() == [[False, False, True, True], [False, False, False, True]]
    labels, ignore = source_targets(labelled_batch(), embeddings, 1, CITYSCAPES.ids_of(["train"]))
    assert not labels.any() and ignore.sum() == 5


def test_a_network_learns_its_classes(tiny):
    _, _, loaded = tiny
    runs = loaded.runs
    everything = runs["city-instance-self_trained-all.25-s0"].spec
    assert learned_ids(everything, CITYSCAPES) == CITYSCAPES.thing_ids
    human = runs["city-instance-source_only-ccm.human-s0"].spec
    assert learned_ids(human, CITYSCAPES) == CITYSCAPES.ids_of(["person", "rider"])


def test_scores_of_some_classes_leave_the_others_out():
    truth = np.array([[1, 1, 2, 2]])
    segments = [
        {"id": 1, "category_id": CAR, "isthing": True, "iscrowd": 0},
        {"id": 2, "category_id": PERSON, "isthing": True, "iscrowd": 0},
    ]
    score = ThreatScore(CITYSCAPES)
    score.update(truth, segments, np.array([[1, 1, 0, 0]]), [{"id": 1, "category_id": CAR}])
    assert threat_scores(score)["pooled"] == 0.5
    assert threat_scores(score, (CAR,))["pooled"] == 1.0
    assert threat_scores(score, (PERSON,))["pooled"] == 0.0


@pytest.mark.parametrize(
    ("scores", "tolerance", "chosen"),
    [
        ([0.80, 0.86, 0.85, 0.855, 0.70, 0.70], 0.0, 1),  # the best
        ([0.80, 0.86, 0.85, 0.855, 0.70, 0.70], 0.01, 3),  # a wider bandwidth that is nearly as good
        ([0.80, 0.86, 0.85, 0.855, 0.70, 0.70], 0.001, 1),
        ([0.80, 0.86, 0.85, 0.855, 0.70, 0.70], 0.5, 4),
        ([0.80, 0.80, 0.86, 0.80, 0.86, 0.86], 0.0, 2),  # the first of equal ones
        ([0.80, 0.80, 0.85, 0.86, 0.80, 0.80], 0.01, 3),  # the best merge distance of its bandwidth
        ([float("nan")] * 6, 0.0, 0),
        ([0.0, float("nan"), 0.0, 0.0, 0.0, 0.0], 0.0, 0),
        ([float("nan")] * 6, 0.01, 4),
    ],
)
def test_the_widest_bandwidth_that_is_nearly_as_good_is_taken(scores, tolerance, chosen):
    assert widest_within([0.5, 1.0, 2.0], [1.0, 2.0], scores, tolerance) == chosen
    order = [4, 5, 2, 3, 0, 1]  # the order in which bandwidths are tried does not decide, but of equal ones
    mirrored = widest_within([2.0, 1.0, 0.5], [1.0, 2.0], [scores[i] for i in order], tolerance)
    assert scores[order[mirrored]] == scores[chosen] or all(map(math.isnan, scores))
    assert tolerance == 0 or order[mirrored] == chosen


def test_without_masks_clusters_take_their_most_frequent_class():
    """Two clusters, left and right: the left one is mostly car, the right one mostly road."""
    embeddings = torch.zeros(2, 4, 8)
    embeddings[0, :, 4:] = 10.0
    semantic = torch.full((4, 8), ROAD)
    semantic[:, :3] = CAR
    semantic[0, 5] = PERSON
    options = {"bandwidth": 0.5, "delta_dist": 2.0}
    labels, table = cluster_unguided(embeddings, semantic, (CAR, PERSON), **options)
    assert [(row["category_id"], row["area"]) for row in table] == [(CAR, 16)]
    assert torch.equal(labels > 0, torch.arange(8).expand(4, 8) < 4)  # beyond the mask
    assert cluster_unguided(embeddings, semantic, (PERSON,), **options)[1] == []
    full, rows = predict_instances(embeddings, semantic, CITYSCAPES, guided=False, **options)
    assert torch.equal(full, labels) and rows[0]["category_id"] == CAR
    inside, _ = predict_instances(embeddings, semantic, CITYSCAPES, **options)
    assert torch.equal(inside == inside[0, 0], semantic == CAR)


def test_embedding_pictures_do_not_depend_on_rotations_of_the_embeddings():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([8.0, 4.0, 2.0, 0.1])[:, None, None]
    embeddings = sizes * torch.randn(4, 6, 10, generator=generator)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=generator))[0]
    rotated = torch.einsum("ij,jhw->ihw", rotation, embeddings)
    one, other = embedding_picture(embeddings), embedding_picture(rotated)
    assert one.shape == (6, 10, 3) and one.dtype == np.uint8
    for channel in range(3):  # a direction may be turned round
        difference = np.abs(one[..., channel].astype(int) - other[..., channel]).max()
        turned = np.abs(255 - one[..., channel].astype(int) - other[..., channel]).max()
        assert min(difference, turned) <= 2
    assert not embedding_picture(torch.ones(2, 3, 4)).any()  # nothing varies
