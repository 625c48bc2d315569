"""Controls without embeddings: Otsu's threshold, connected components and the watershed of a mask."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny_study

from panolib.clustering.algorithms import connected_components
from panolib.clustering.watershed import watershed
from panolib.config import ProfileError
from panolib.data.render.nuclei_scenes import render_nuclei
from panolib.data.samples import Sample
from panolib.labels import CITYSCAPES, NUCLEI
from panolib.load import load
from panolib.profiles import load_yaml
from panolib.report.rows import rows
from panolib.report.words import word
from panolib.scoring import classical
from panolib.scoring.classical import Setting, choose_setting, cut, otsu_mask, score_classical, settings_grid

# --- the watershed ------------------------------------------------------------------------------------------


def discs(*centres: tuple[int, int], radius: int = 8, size: tuple[int, int] = (40, 64)) -> torch.Tensor:
    """bool [H, W]: the union of discs."""
    rows, columns = np.indices(size)
    return torch.from_numpy(np.any([np.hypot(rows - y, columns - x) < radius for y, x in centres], axis=0))


def test_discs_that_touch_are_told_apart_where_components_join_them():
    mask = discs((20, 14), (20, 28), (20, 50))
    assert int(connected_components(mask).max()) == 2
    labels = watershed(mask, min_distance=5, sigma=1.0)
    assert int(labels.max()) == 3 and labels.dtype == torch.int64
    assert torch.equal(labels > 0, mask)
    assert len({int(labels[20, x]) for x in (14, 28, 50)}) == 3
    areas = torch.bincount(labels.flatten())[1:]
    assert areas.max() - areas.min() < 0.2 * areas.max()


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_every_pixel_of_a_mask_belongs_to_an_instance(sigma):
    generator = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.4, 1.0):
        mask = torch.from_numpy(generator.random((24, 31)) < share)
        labels = watershed(mask, min_distance=4, sigma=sigma)
        assert torch.equal(labels > 0, mask)
        assert labels.unique().tolist() == list(range(int(labels.max()) + 1))[int(mask.all()) and 1 :]
        both = connected_components(mask)
        for k in range(1, int(labels.max()) + 1):  # no instance lies in two regions
            assert len(both[labels == k].unique()) == 1


def test_far_peaks_are_one_instance_with_a_larger_distance():
    mask = discs((20, 20), (20, 29))
    assert int(watershed(mask, min_distance=3, sigma=0.0).max()) == 2
    assert int(watershed(mask, min_distance=20, sigma=0.0).max()) == 1


@pytest.mark.parametrize(("min_distance", "sigma"), [(0, 1.0), (3, -1.0), (3, math.nan)])
def test_wrong_settings_of_the_watershed_are_refused(min_distance, sigma):
    with pytest.raises(ValueError, match=rf"min_distance is {min_distance}, sigma is {sigma}; expected"):
        watershed(discs((9, 9)), min_distance=min_distance, sigma=sigma)


# --- masks and settings -------------------------------------------------------------------------------------


def picture(mask: torch.Tensor, *, bright: int = 180, dark: int = 20, noise: int = 0) -> Sample:
    """A grey image of a mask, whose components are its instances."""
    grey = np.where(mask.numpy(), bright, dark) + np.random.default_rng(0).integers(0, noise + 1, mask.shape)
    labels = connected_components(mask).int().numpy()
    image = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
    return Sample(image, mask.numpy().astype(np.uint8), labels, None, "a")


def test_otsu_finds_what_is_bright_and_nothing_in_an_even_image():
    mask = discs((20, 14), (20, 40))
    assert np.array_equal(otsu_mask(picture(mask, noise=30)), mask.numpy())
    assert not otsu_mask(picture(torch.zeros(9, 9, dtype=torch.bool))).any()
    smooth = otsu_mask(picture(mask, noise=70), 2.0)
    assert smooth.mean() == pytest.approx(mask.float().mean().item(), rel=0.1)


def test_components_have_no_peaks_to_choose():
    values = {"smoothings": (0.0, 1.0), "sigmas": (0.0, 1.0), "min_distances": (3, 5), "min_sizes": (4,)}
    assert len(settings_grid("watershed", **values)) == 8
    assert settings_grid("connected_components", **values) == [Setting(s, 0.0, 1, 4) for s in (0.0, 1.0)]


def test_small_instances_are_dropped():
    mask = discs((20, 14), (20, 40))
    mask[2, 2] = True
    for size, n in ((1, 3), (2, 2)):
        for algorithm in ("watershed", "connected_components"):
            assert int(cut(mask.numpy(), algorithm, Setting(0.0, 1.0, 5, size)).max()) == n


def test_the_best_setting_of_the_selection_is_chosen_and_all_are_recorded():
    sample = picture(discs((20, 14), (20, 28), (20, 50)))
    sample.instance[:, 21:40][sample.instance[:, 21:40] > 0] = 9  # two that touch
    settings = settings_grid("watershed", (0.0,), (1.0,), (5, 30), (4,))
    chosen, grid = choose_setting(otsu_mask, [sample], NUCLEI, "watershed", settings)
    assert chosen == settings[0] and [row["min_distance"] for row in grid] == [5, 30]
    assert grid[0]["pq"] > 0.9 > grid[1]["pq"]
    nothing = [Setting(0.0, 1.0, 5, 10**6)]  # finds nothing at all: still one that is the best
    assert choose_setting(otsu_mask, [sample], NUCLEI, "watershed", nothing)[0] == nothing[0]


def test_scores_by_hand_with_counts_of_every_image():
    mask = discs((20, 14), (20, 28), (20, 50))
    found, truth = {}, picture(mask)
    for number, columns in ((8, slice(17, 25)), (9, slice(25, 40))):
        truth.instance[:, columns][truth.instance[:, columns] > 0] = number
    scores = score_classical(
        otsu_mask, [truth], [truth, picture(discs((20, 14)))], NUCLEI, algorithm="connected_components",
        masks="otsu", settings=[Setting(0.0, 0.0, 1, 4)], merge_rules=("void", "nearest"), n_samples=0,
        save_sample=None, save_counts=found.__setitem__,
    )  # fmt: skip
    # the three that touch are one component: one false, three missed
    assert found["threat.connected_components.otsu"].tolist() == [[[1, 1, 3]], [[1, 0, 0]]]
    assert scores["threat"]["connected_components in otsu masks"]["pooled"] == 2 / 6
    assert scores["pq"]["nucleus"] == scores["merge"]["nearest"]["pq"]["nucleus"] == pytest.approx(2 / 4)
    assert scores["miou_2"] == 1.0 and scores["n_images"] == 2
    assert found["panoptic.connected_components.void"].shape == (2, 2, 5) and "semantic_2" in found
    assert scores["chosen"] == {"smoothing": 0.0, "sigma": 0.0, "min_distance": 1, "min_size": 4}


def test_masks_of_a_network_are_what_it_calls_a_thing(monkeypatch):
    semantic = torch.tensor([[0, 1], [1, 0]])
    monkeypatch.setattr(classical, "predict_image", lambda *_: SimpleNamespace(semantic=semantic))
    assert classical.predicted_mask(None, NUCLEI)(None, 3.0).tolist() == [[False, True], [True, False]]


def test_label_sets_with_more_classes_are_refused():
    with pytest.raises(ValueError, match="cityscapes: expected one thing and one stuff class"):
        classical.two_classes(np.zeros((2, 2), bool), CITYSCAPES)


def test_on_rendered_nuclei_the_watershed_is_above_components():
    samples = [render_nuclei(seed=3, index=i, height=128, width=128) for i in range(6)]
    pq = {}
    for algorithm in ("connected_components", "watershed"):
        settings = settings_grid(algorithm, (0.0,), (1.0,), (3, 5), (20,))
        _, grid = choose_setting(otsu_mask, samples, NUCLEI, algorithm, settings)
        pq[algorithm] = max(row["pq"] for row in grid)
    assert pq["watershed"] > pq["connected_components"] + 0.05 > 0.2


# --- rungs of the ladder ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("classical"))


def test_controls_are_rungs_whose_settings_come_from_the_source(study):
    ladder = [study.runs[tag.run] for tag in study.tags if tag.experiment == "nuclei ladder"]
    controls = {(run.rung, run.variant): run for run in ladder if run.kind == "classical"}
    names = {"Otsu + components", "Otsu + watershed", "watershed of masks"}
    assert {word(rung) for rung, _ in controls} == names
    for (rung, variant), run in controls.items():
        assert run.spec.selection == "nuclei_scenes/val" and run.spec.validation == "nuclei/val"
        parents = {role: parent.rung for role, parent in run.parents}
        assert parents == ({"semantic": variant or "self_trained"} if rung == "mask_watershed" else {})
    assert not any(run.kind == "classical" for run in study.runs.values() if run.domain == "city")


def test_their_scores_are_rows_of_the_same_table(study, monkeypatch):
    source = study.sources["nuclei"]
    source.prepare(progress=False)
    scenes = source.open("nuclei_scenes/val")  # real images are not everywhere
    monkeypatch.setattr(source, "open", lambda name: scenes)
    monkeypatch.setattr(source, "available", lambda: True)
    rungs = ["otsu_components", "otsu_watershed"]
    found = rows(study, "nuclei ladder", rung=rungs, metric=["pq", "threat_pooled"])
    found = found[found["subset"].isin(["", "nucleus"])]
    assert set(found["masks"]) == {"Otsu"} and found["value"].between(0, 1).all()
    assert found.set_index("rung")["instances"].to_dict() == {
        "otsu_components": "connected components", "otsu_watershed": "watershed"
    }  # fmt: skip
    record = study.get("nuclei-panoptic-otsu_watershed-s0")
    best = max(row["pq"] for row in record.metrics["grid"])
    assert record.metrics["pq"]["nucleus"] == best  # scored where it was chosen
    assert len(record.metrics["grid"]) == 4 and record.counts["threat.watershed.otsu"].shape == (2, 1, 3)


def test_streets_have_no_such_controls(tmp_path):
    tiny_study(tmp_path)
    profile = load_yaml(tmp_path / "tiny.yaml")
    profile["city"]["classical"] = profile["nuclei"]["classical"]
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(profile))
    with pytest.raises(ProfileError, match=r"city.classical: expected null for the label set 'cityscapes'"):
        load(tmp_path / "tiny.yaml", root=tmp_path)
