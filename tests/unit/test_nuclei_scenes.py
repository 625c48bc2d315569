"""Rendered nuclei: exact and repeatable labels, a look like fluorescence, and folders written once."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from panolib.data.cache import written_once
from panolib.data.readers import Nuclei
from panolib.data.render import nuclei_scenes
from panolib.data.render.nuclei_scenes import LOOKS, MIN_AREA_PX, render_nuclei, write_nuclei

SIZES = {"height": 64, "width": 96}


@pytest.fixture(scope="module")
def scenes():
    return [render_nuclei(seed=3, index=i, height=160, width=192) for i in range(16)]


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_labels_are_complete_and_exact(scenes):
    for scene in scenes:
        assert scene.image.shape == (160, 192, 3) and scene.image.dtype == np.uint8
        assert scene.semantic.dtype == np.uint8 and scene.instance.dtype == np.int32
        np.testing.assert_array_equal(scene.semantic, scene.instance > 0)
        areas = np.bincount(scene.instance.ravel())[1:]
        assert len(areas) >= 1 and areas.min() >= MIN_AREA_PX  # ids 1 .. K without gaps
        assert not scene.crowd.any()
        assert (scene.image == scene.image[..., :1]).all()


def test_labels_lie_on_the_bright_blobs(scenes):
    for scene in scenes:
        grey = scene.image[..., 0].astype(float)
        background = np.median(grey[scene.instance == 0])
        levels = ndimage.mean(grey, scene.instance, np.arange(1, scene.instance.max() + 1))
        assert (levels > background).mean() > 0.95
        assert grey[scene.instance > 0].mean() > 2 * background


def test_a_nucleus_is_one_piece_but_for_stray_pixels(scenes):
    share = []
    for scene in scenes:
        for i in range(1, scene.instance.max() + 1):
            pieces, _ = ndimage.label(scene.instance == i, structure=np.ones((3, 3)))
            sizes = np.bincount(pieces.ravel())[1:]
            share.append(sizes.max() / sizes.sum())
    assert np.mean(np.array(share) == 1) > 0.99 and min(share) > 0.5


def test_nuclei_touch_and_vary(scenes):
    """What makes the task one for instances: borders between nuclei; experiments of different scale."""
    touching = sum(
        int(((a != b) & (a > 0) & (b > 0)).sum())
        for a, b in ((scene.instance[:, 1:], scene.instance[:, :-1]) for scene in scenes)
    )
    assert touching > 100
    median_areas = [np.median(np.bincount(scene.instance.ravel())[1:]) for scene in scenes]
    assert max(median_areas) > 6 * min(median_areas)


def test_rendering_is_a_function_of_seed_and_index(scenes):
    again = render_nuclei(seed=3, index=5, height=160, width=192)
    np.testing.assert_array_equal(again.image, scenes[5].image)
    np.testing.assert_array_equal(again.instance, scenes[5].instance)
    for seed, index in ((4, 5), (3, 6)):
        assert (render_nuclei(seed=seed, index=index, height=160, width=192).image != again.image).any()


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("size", [(32, 32), (33, 200), (300, 40)])
def test_every_look_at_odd_sizes(look, size, monkeypatch):
    monkeypatch.setattr(nuclei_scenes, "LOOKS", {look: LOOKS[look]})
    for index in range(3):
        scene = render_nuclei(seed=0, index=index, height=size[0], width=size[1])
        assert scene.image.shape == (*size, 3) and scene.instance.shape == size


def test_looks_are_proper_ranges():
    assert sum(look["probability"] for look in LOOKS.values()) == pytest.approx(1)
    for look in LOOKS.values():
        ranges = [value for name, value in look.items() if name != "probability"]
        assert all(0 <= low <= high for low, high in ranges)


@pytest.mark.parametrize(
    "change",
    [{"height": 31}, {"width": 0}, {"seed": -1}, {"index": -2}],
    ids=lambda change: next(iter(change)),
)
def test_render_errors(change):
    with pytest.raises(ValueError, match=r"expected at least 32 x 32|negative"):
        render_nuclei(**({"seed": 0, "index": 0, **SIZES} | change))


# ---------------------------------------------------------------- on disk


def test_written_folder_reads_back(tmp_path):
    root = write_nuclei(tmp_path / "train", split="train", n_images=3, seed=1, progress=False, **SIZES)
    assert root == tmp_path / "train"
    dataset = Nuclei(root, "train", modality="fluorescence_grey")
    assert dataset.ids == ["train_00000", "train_00001", "train_00002"]
    seed = int.from_bytes(sha256(b"1/train").digest()[:8], "big")
    for index, sample in enumerate(dataset):
        scene = render_nuclei(seed=seed, index=index, **SIZES)
        np.testing.assert_array_equal(sample.image, scene.image)
        np.testing.assert_array_equal(sample.instance, scene.instance)
        np.testing.assert_array_equal(sample.semantic, scene.semantic)
    assert [p.name for p in tmp_path.iterdir()] == ["train"]  # nothing left beside


def test_splits_of_one_seed_differ(tmp_path):
    folders = [
        write_nuclei(tmp_path / split, split=split, n_images=1, seed=1, progress=False, **SIZES)
        for split in ("train", "val")
    ]
    images = [Nuclei(folder, folder.name)[0].image for folder in folders]
    assert (images[0] != images[1]).any()


def test_workers_do_not_change_the_files(tmp_path):
    one, two = (
        write_nuclei(tmp_path / str(n), split="val", n_images=5, seed=2, n_workers=n, progress=False, **SIZES)
        for n in (1, 2)
    )
    assert files(one) == files(two)


def test_folder_is_reused_or_replaced_by_fingerprint(tmp_path, monkeypatch):
    settings = {"split": "train", "n_images": 2, "seed": 1, "progress": False, **SIZES}
    root = write_nuclei(tmp_path / "n", **settings)
    before = files(root)
    stamp = (root / "index.csv").stat().st_mtime_ns
    write_nuclei(root, **settings)
    assert (root / "index.csv").stat().st_mtime_ns == stamp

    write_nuclei(root, **settings | {"seed": 2})
    assert files(root)["images/train_00000.png"] != before["images/train_00000.png"]
    monkeypatch.setattr(nuclei_scenes, "RENDERER_VERSION", nuclei_scenes.RENDERER_VERSION + 1)
    write_nuclei(root, **settings | {"seed": 2})
    assert json.loads((root / "fingerprint.json").read_text())["version"] == nuclei_scenes.RENDERER_VERSION
    (root / "fingerprint.json").write_text('{"trunc')
    write_nuclei(root, **settings | {"seed": 2})
    assert len(Nuclei(root, "train")) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["n"]


def test_an_interrupted_write_leaves_the_old_state(tmp_path):
    folder = written_once(tmp_path / "data", {"v": 1}, lambda f: (f / "a").write_text("old"))

    def broken(partial):
        (partial / "a").write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written_once(folder, {"v": 2}, broken)
    assert (folder / "a").read_text() == "old"

    stale = tmp_path / ".data.partial"  # what a killed process leaves
    stale.mkdir()
    (stale / "b").write_text("half")
    written_once(folder, {"v": 2}, lambda f: (f / "a").write_text("new"))
    assert (folder / "a").read_text() == "new" and not (folder / "b").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_a_users_own_folder_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/picture.png").write_text("precious")
    with pytest.raises(FileExistsError, match=r"mine: holds files but no fingerprint.json"):
        write_nuclei(tmp_path / "mine", split="train", n_images=1, seed=0, progress=False, **SIZES)
    assert files(tmp_path / "mine") == {"picture.png": b"precious"}


def test_write_errors(tmp_path):
    with pytest.raises(ValueError, match="8 x 64"):
        write_nuclei(tmp_path / "n", split="train", n_images=1, seed=0, height=8, width=64, progress=False)
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_damaged_fingerprint_is_another_one(content, tmp_path):
    folder = written_once(tmp_path / "data", {"v": 1}, lambda f: (f / "a").write_text("old"))
    (folder / "fingerprint.json").write_bytes(content)
    written_once(folder, {"v": 1}, lambda f: (f / "a").write_text("new"))
    assert (folder / "a").read_text() == "new"
