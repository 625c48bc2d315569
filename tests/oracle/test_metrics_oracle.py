"""Metrics against the official Cityscapes tools, torchmetrics and plain loops, on random scenes.

The scenes hold void, groups, small objects, and predictions that are shifted, dropped, split, merged, renamed
and invented. `COMMITTED` keeps the official numbers of one set of scenes, so that the comparison also stands
where the tools cannot be imported. RandomState, because NumPy guarantees its stream for ever.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from panolib.labels import CITYSCAPES, VOID
from panolib.metrics.average_precision import CityscapesAP
from panolib.metrics.averages import mean_of_defined
from panolib.metrics.panoptic import PanopticStats
from panolib.metrics.semantic import confusion_matrix, iou_per_class
from panolib.metrics.threat_score import ThreatScore

HEIGHT, WIDTH, N_IMAGES = 96, 160, 4
MIN_REGION = 100
FILE_IDS = np.array(CITYSCAPES.file_ids)
THING_FILE_IDS = FILE_IDS[list(CITYSCAPES.thing_ids)]
STUFF_FILE_IDS = FILE_IDS[list(CITYSCAPES.stuff_ids)]
IGNORED_FILE_IDS = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
TRAIN_ID = np.full(34, VOID)
TRAIN_ID[FILE_IDS] = np.arange(CITYSCAPES.n_classes)
SEEDS = (0, 1, 2)

# official tools (cityscapesScripts 2.3.0) on the scenes of seed 0
COMMITTED = {
    "pq": 0.3781917533152677,
    "sq": 0.6300682798910191,
    "rq": 0.5750871299323311,
    "ap": 0.04497395833333333,
    "ap50": 0.12216145833333333,
    "miou_19": 0.4788790319270099,
    "miou_16": 0.5117481439086929,
}


# scenes


def ellipse(rng, low: int, high: int) -> np.ndarray:
    """bool [HEIGHT, WIDTH]: an ellipse with random place and half axes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    cy, cx = rng.randint(HEIGHT), rng.randint(WIDTH)
    a, b = rng.randint(low, high, 2)
    return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1


def true_scene(rng, *, caravans: bool) -> np.ndarray:
    """int32 [HEIGHT, WIDTH] as in gtFine instanceIds: label ids, label id * 1000 + k for single objects."""
    raw = np.kron(rng.choice(STUFF_FILE_IDS, (6, 10)), np.ones((16, 16), int)).astype(np.int32)
    for k in range(18):
        label = rng.choice(THING_FILE_IDS)
        raw[ellipse(rng, 3, 18)] = label if rng.rand() < 0.15 else label * 1000 + k
    if caravans:
        raw[ellipse(rng, 8, 20)] = 29001
    for _ in range(3):
        raw[ellipse(rng, 5, 20)] = rng.choice(IGNORED_FILE_IDS[:-2])
    return raw


def panoptic_of(raw: np.ndarray) -> tuple[np.ndarray, list[dict]]:
    """Panoptic truth of an instanceIds map, as createPanopticImgs makes it."""
    train = TRAIN_ID[np.where(raw >= 1000, raw // 1000, raw)]
    panoptic_map = np.where(train == VOID, 0, raw)
    segments = []
    for i in np.unique(panoptic_map[panoptic_map > 0]):
        area = int((panoptic_map == i).sum())
        category = int(train[panoptic_map == i][0])
        segments.append(
            {"id": int(i), "category_id": category, "area": area, "iscrowd": int(i in THING_FILE_IDS)}
        )
    return panoptic_map, segments


def predicted_scene(rng, raw: np.ndarray, *, void: bool) -> tuple[np.ndarray, list[dict]]:
    """A faulty copy of the truth with ids and confidences of its own."""
    truth_map, segments = panoptic_of(raw)
    work = np.roll(truth_map, rng.randint(-2, 3, 2), (0, 1)).astype(np.int64)
    class_of = {s["id"]: s["category_id"] for s in segments}
    sky = int(FILE_IDS[CITYSCAPES.classes.index("sky")])
    class_of[sky] = CITYSCAPES.classes.index("sky")
    work[(work == 0) & (ellipse(rng, 20, 60) | (not void))] = sky
    if void:
        work[ellipse(rng, 5, 20)] = 0
    things = [i for i in np.unique(work).tolist() if class_of.get(i) in CITYSCAPES.thing_ids]
    for i in things:
        mask, fate = work == i, rng.randint(8)
        same = [j for j in things if j != i and class_of[j] == class_of[i]]
        if fate == 0:
            work[mask] = sky
        elif fate == 1 and void:
            work[mask] = 0
        elif fate == 2:  # split
            cut = np.median(np.nonzero(mask)[1])
            work[mask & (np.arange(WIDTH) > cut)] = i + 500
            class_of[i + 500] = class_of[i]
        elif fate == 3 and same:  # merge
            work[mask] = rng.choice(same)
        elif fate == 4:  # wrong class
            class_of[i] = int(rng.choice(CITYSCAPES.thing_ids))
    for k in range(5):  # invented
        work[ellipse(rng, 3, 14)] = 90000 + k
        class_of[90000 + k] = int(rng.choice(CITYSCAPES.thing_ids))
    work[:16, :16] = int(FILE_IDS[0])
    class_of[int(FILE_IDS[0])] = 0

    old = np.unique(work[work > 0])
    new = rng.permutation(2**20)[: old.size] + 1
    panoptic_map = np.zeros(work.shape, np.int32)
    panoptic_map[work > 0] = new[np.searchsorted(old, work[work > 0])]
    predicted = []
    for i, o in zip(new.tolist(), old.tolist()):
        confidence = float(rng.randint(1, 11)) / 10
        area = int((panoptic_map == i).sum())
        predicted.append({"id": i, "category_id": class_of[o], "area": area, "confidence": confidence})
    return panoptic_map, predicted


def scenes(seed: int, *, caravans: bool = False, void: bool = True) -> list[tuple]:
    """(raw truth, truth map, truth segments, predicted map, predicted segments) of every image."""
    rng = np.random.RandomState(seed)
    result = []
    for _ in range(N_IMAGES):
        raw = true_scene(rng, caravans=caravans)
        result.append((raw, *panoptic_of(raw), *predicted_scene(rng, raw, void=void)))
    return result


def semantic_of(panoptic_map: np.ndarray, segments: list[dict]) -> np.ndarray:
    """uint8 train ids of a panoptic image."""
    semantic = np.full(panoptic_map.shape, VOID, np.uint8)
    for s in segments:
        semantic[panoptic_map == s["id"]] = s["category_id"]
    return semantic


# ours


def our_panoptic(images) -> PanopticStats:
    stats = PanopticStats(CITYSCAPES)
    for _, *image in images:
        stats.update(*image)
    return stats


def our_ap(images, *, void=None) -> CityscapesAP:
    ap = CityscapesAP(CITYSCAPES, min_region=MIN_REGION)
    for raw, *image in images:
        ap.update(*image, void=None if void is None else void(raw))
    return ap


def our_confusion(images) -> np.ndarray:
    return sum(
        confusion_matrix(semantic_of(truth, truth_segments), semantic_of(predicted, segments), 19)
        for _, truth, truth_segments, predicted, segments in images
    )


def masks_of(predicted: np.ndarray, segments: list[dict]) -> list[tuple]:
    """(mask, class, confidence) of every predicted segment."""
    return [(predicted == s["id"], s["category_id"], s["confidence"]) for s in segments]


# official tools


def official_panoptic(images, folder, monkeypatch) -> dict:
    tool = pytest.importorskip("cityscapesscripts.evaluation.evalPanopticSemanticLabeling")

    def one_process(pairs, *args):
        return tool.pq_compute_single_core(0, pairs, *args)

    monkeypatch.setattr(tool, "pq_compute_multi_core", one_process)
    categories = [
        {"id": i, "name": name, "isthing": int(name in CITYSCAPES.things)}
        for i, name in enumerate(CITYSCAPES.classes)
    ]
    for name, first in (("truth", 1), ("predicted", 3)):
        (folder / name).mkdir()
        annotations = []
        for n, image in enumerate(images):
            panoptic_map, segments = image[first], image[first + 1]
            rgb = np.stack([panoptic_map >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / name / f"{n}.png")
            annotations.append({"image_id": n, "file_name": f"{n}.png", "segments_info": segments})
        listing = {"annotations": annotations, "categories": categories}
        (folder / f"{name}.json").write_text(json.dumps(listing))
    paths = [str(folder / p) for p in ("truth.json", "truth", "predicted.json", "predicted", "result.json")]
    return tool.evaluatePanoptic(*paths)


def official_ap(images, instances, folder, monkeypatch) -> dict:
    """`instances` holds per image a list of (mask, class, confidence)."""
    tool = pytest.importorskip("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    # the tool keeps its results in files, and cannot write the integers of numpy 2
    monkeypatch.setattr(tool, "writeDict2JSON", lambda *args: None)
    truth_files, prediction_files = [], []
    for n, ((raw, *_), predicted) in enumerate(zip(images, instances)):
        truth_files.append(str(folder / f"{n}_truth.png"))
        prediction_files.append(str(folder / f"{n}.txt"))
        Image.fromarray(raw.astype(np.uint16)).save(truth_files[-1])
        lines = []
        for k, (mask, class_id, confidence) in enumerate(predicted):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{n}_{k}.png")
            lines.append(f"{n}_{k}.png {FILE_IDS[class_id]} {confidence!r}\n")
        (folder / f"{n}.txt").write_text("".join(lines))
    options = {"gtInstancesFile": str(folder / "instances.json"), "predictionPath": str(folder)}
    for name, value in {**options, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(tool.args, name, value)
    return tool.evaluateImgLists(prediction_files, truth_files, tool.args)


def official_miou(images, class_ids, folder, monkeypatch) -> dict:
    tool = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    evaluated = {int(FILE_IDS[i]) for i in class_ids}
    labels = {i: label._replace(ignoreInEval=i not in evaluated) for i, label in tool.id2label.items()}
    monkeypatch.setattr(tool, "id2label", labels)
    for name, value in {"evalInstLevelScore": False, "JSONOutput": False, "quiet": True}.items():
        monkeypatch.setattr(tool.args, name, value)
    files = {"truth": [], "predicted": []}
    for n, (raw, _, _, predicted, segments) in enumerate(images):
        labels_of = {
            "truth": np.where(raw >= 1000, raw // 1000, raw).astype(np.uint8),
            "predicted": CITYSCAPES.file_id_table()[semantic_of(predicted, segments)],
        }
        for name, label_map in labels_of.items():
            files[name].append(str(folder / f"{n}_{name}.png"))
            Image.fromarray(label_map).save(files[name][-1])
    return tool.evaluateImgLists(files["predicted"], files["truth"], tool.args)


@pytest.mark.parametrize("seed", SEEDS)
def test_panoptic_equals_cityscapes_tool(seed, tmp_path, monkeypatch):
    images = scenes(seed)
    official = official_panoptic(images, tmp_path, monkeypatch)
    stats = our_panoptic(images)
    subsets = {"All": range(19), "Things": CITYSCAPES.thing_ids, "Stuff": CITYSCAPES.stuff_ids}
    for name, class_ids in subsets.items():
        ours = stats.result(class_ids)
        for score in ("pq", "sq", "rq"):
            assert getattr(ours, f"mean_{score}") == pytest.approx(official[name][score], abs=1e-9)
        assert np.isfinite(ours.pq).sum() == official[name]["n"]
    ours = stats.result()
    for class_id, scores in official["per_class"].items():
        for score, value in scores.items():
            assert np.nan_to_num(getattr(ours, score)[class_id]) == pytest.approx(value, abs=1e-9)
    # the scenes are neither trivial nor hopeless
    assert 0.1 < ours.mean_pq < 0.9 and min(ours.tp.sum(), ours.fp.sum(), ours.fn.sum()) > 10


@pytest.mark.parametrize(("seed", "caravans"), [(0, False), (1, True), (2, False), (3, True)])
def test_ap_equals_cityscapes_tool(seed, caravans, tmp_path, monkeypatch):
    images = scenes(seed, caravans=caravans)
    official = official_ap(images, [masks_of(*image[3:]) for image in images], tmp_path, monkeypatch)
    # single caravans are void to every tool but this one
    ours = our_ap(images, void=lambda raw: np.isin(raw, IGNORED_FILE_IDS)).result()
    check_ap(ours, official)
    if not caravans:
        check_ap(our_ap(images).result(), official)


def check_ap(ours, official):
    table = np.array(official["resultApMatrix"])[0]
    names = list(CITYSCAPES.things)
    assert names == official["instLabels"]
    np.testing.assert_allclose(ours.per_threshold, table, atol=1e-9)
    assert ours.mean_ap == pytest.approx(official["averages"]["allAp"], abs=1e-9)
    assert ours.mean_ap50 == pytest.approx(official["averages"]["allAp50%"], abs=1e-9)
    assert 0 < ours.mean_ap < ours.mean_ap50 < 1


@pytest.mark.parametrize("subset", ["19", "16"])
@pytest.mark.parametrize("seed", SEEDS)
def test_iou_equals_cityscapes_tool(seed, subset, tmp_path, monkeypatch):
    images = scenes(seed, caravans=True)
    class_ids = CITYSCAPES.subset_ids(subset)
    official = official_miou(images, class_ids, tmp_path, monkeypatch)
    confusion = our_confusion(images)
    expected = [official["classScores"][CITYSCAPES.classes[i]] for i in class_ids]
    np.testing.assert_allclose(iou_per_class(confusion, class_ids), expected, atol=1e-9)
    mean = mean_of_defined(iou_per_class(confusion, class_ids))
    assert mean == pytest.approx(official["averageScoreClasses"], abs=1e-9)


def test_official_numbers_of_seed_0():
    images = scenes(0)
    result, ap = our_panoptic(images).result(), our_ap(images).result()
    confusion = our_confusion(images)
    ours = {
        "pq": result.mean_pq, "sq": result.mean_sq, "rq": result.mean_rq,
        "ap": ap.mean_ap, "ap50": ap.mean_ap50,
        "miou_19": mean_of_defined(iou_per_class(confusion, range(19))),
        "miou_16": mean_of_defined(iou_per_class(confusion, CITYSCAPES.subset_ids("16"))),
    }  # fmt: skip
    assert ours == pytest.approx(COMMITTED, abs=1e-9)


# torchmetrics; it computes in float32


def as_pairs(panoptic_map: np.ndarray, segments: list[dict]) -> torch.Tensor:
    """int64 [1, H, W, 2]: class and instance id; void is a class that torchmetrics does not know."""
    semantic = semantic_of(panoptic_map, segments).astype(np.int64)
    return torch.from_numpy(np.stack([semantic, panoptic_map.astype(np.int64)], axis=-1))[None]


def without_groups(images) -> list[tuple]:
    """Groups become single objects: torchmetrics does not know crowds."""
    return [(raw, truth, [{**s, "iscrowd": 0} for s in segments], *predicted)
            for raw, truth, segments, *predicted in images]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_panoptic_equals_torchmetrics_where_everything_is_predicted(seed):
    detection = pytest.importorskip("torchmetrics.detection")
    images = without_groups(scenes(seed, void=False))
    classes = {"things": CITYSCAPES.thing_ids, "stuffs": CITYSCAPES.stuff_ids}
    plain = detection.PanopticQuality(**classes, return_sq_and_rq=True)
    modified = detection.ModifiedPanopticQuality(**classes)
    for _, truth, truth_segments, predicted, segments in images:
        assert (predicted > 0).all()
        plain.update(as_pairs(predicted, segments), as_pairs(truth, truth_segments))
        modified.update(as_pairs(predicted, segments), as_pairs(truth, truth_segments))
    ours = our_panoptic(images).result()
    expected = plain.compute().tolist()
    assert [ours.mean_pq, ours.mean_sq, ours.mean_rq] == pytest.approx(expected, abs=1e-6)
    assert ours.mean_pq_plus == pytest.approx(modified.compute().item(), abs=1e-6)


# plain loops


def loop_iou(mask_true, mask_predicted, void):
    mask_predicted = mask_predicted & ~void
    return (mask_true & mask_predicted).sum() / (mask_true | mask_predicted).sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_pq_plus_equals_double_loop_with_void_and_crowd(seed):
    images = scenes(seed)
    iou_sum, n_truth = np.zeros(19), np.zeros(19)
    for _, truth, truth_segments, predicted, segments in images:
        for t in truth_segments:
            if t["iscrowd"]:
                continue
            n_truth[t["category_id"]] += 1
            for p in segments:
                if p["category_id"] == t["category_id"]:
                    iou_sum[t["category_id"]] += loop_iou(truth == t["id"], predicted == p["id"], truth == 0)
    ours = our_panoptic(images).result()
    stuff = list(CITYSCAPES.stuff_ids)
    things = list(CITYSCAPES.thing_ids)
    np.testing.assert_allclose(ours.pq_plus[stuff], (iou_sum / n_truth)[stuff], atol=1e-12)
    np.testing.assert_array_equal(ours.pq_plus[things], ours.pq[things])


def test_threat_score_equals_double_loop():
    images = scenes(5)
    score = ThreatScore(CITYSCAPES)
    counts, per_image = np.zeros((19, 3), int), {c: [] for c in range(19)}
    for _, truth, truth_segments, predicted, segments in images:
        score.update(truth, truth_segments, predicted, segments)
        void = truth == 0
        for c in range(19):
            of_class = [t for t in truth_segments if t["category_id"] == c]
            crowds = [t for t in of_class if t["iscrowd"]]
            targets = [t for t in of_class if t not in crowds]
            ignored = void | np.isin(truth, [t["id"] for t in crowds])
            tp = fp = 0
            for p in (p for p in segments if p["category_id"] == c):
                mask = predicted == p["id"]
                if any(loop_iou(truth == t["id"], mask, void) > 0.5 for t in targets):
                    tp += 1
                elif (mask & ignored).sum() <= 0.5 * mask.sum():
                    fp += 1
            counts[c] += (tp, fp, len(targets) - tp)
            if targets:
                per_image[c].append(tp / (len(targets) + fp))
    ours = score.result(range(19))
    np.testing.assert_array_equal(np.stack([ours.tp, ours.fp, ours.fn], axis=1), counts)
    expected = [np.mean(values) if values else np.nan for values in per_image.values()]
    np.testing.assert_allclose(ours.image_mean, expected, atol=1e-12)
    things = score.result()
    assert 0 < things.mean_pooled < 1 and things.mean_pooled != things.mean_image_mean


@pytest.mark.parametrize("seed", SEEDS)
def test_ap_with_one_common_confidence_is_half_recall_times_one_plus_precision(seed):
    ap, threat = CityscapesAP(CITYSCAPES, min_region=1), ThreatScore(CITYSCAPES)
    for raw, _, _, predicted, segments in scenes(seed):
        # no void, no crowd: both scores count the same objects
        raw = np.where(TRAIN_ID[np.where(raw >= 1000, raw // 1000, raw)] == VOID, FILE_IDS[0], raw)
        truth, truth_segments = panoptic_of(np.where(np.isin(raw, THING_FILE_IDS), raw * 1000 + 999, raw))
        threat.update(truth, truth_segments, predicted, segments)
        ap.update(truth, truth_segments, predicted, [{**s, "confidence": 0.3} for s in segments])
    counts = threat.result()
    recall, precision = counts.tp / (counts.tp + counts.fn), counts.tp / (counts.tp + counts.fp)
    np.testing.assert_allclose(ap.result().ap50, 0.5 * recall * (1 + precision), atol=1e-12)
