"""A study of a user's own data: a section of a profile, and nothing else."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import tifffile
import yaml

import panolib
from panolib.config import ProfileError
from panolib.data.intensity import Intensity
from panolib.data.readers import Folders
from panolib.data.readers.own import READERS
from panolib.labels import LABEL_SETS
from panolib.load import load
from panolib.study.packaged import read_package, write_package

TISSUE = {"classes": ["background", "nucleus", "debris"], "things": ["nucleus"]}


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels)


def draw_cells(rng):
    """An image and its mask, uint16 [64, 64] each."""
    mask = np.zeros((64, 64), np.uint16)
    for k, corner in enumerate(rng.integers(0, 48, (4, 2)), start=1):
        mask[corner[0] : corner[0] + 14, corner[1] : corner[1] + 14] = k
    return (500 + 3000 * (mask > 0) + rng.integers(0, 200, mask.shape)).astype(np.uint16), mask


def profile(tmp_path, section: dict, **changes):
    """A profile with one ladder that is trained, in the temporary folder."""
    left_out = dict.fromkeys(("city", "camvid", "experiments", "detr", "performance", "realtime"))
    sizes = {"augmentation": {"height": 64, "width": 64}}
    few = {name: {"iterations": 2} for name in ("self_training", "instance_self_training")}
    few |= {name: {"iterations": 2, **sizes} for name in ("semantic_baseline", "instance_baseline")}
    few |= {name: {"n_batches": 2} for name in ("batch_norm", "instance_batch_norm")}
    content = {"extends": "smoke", "main": "mine", **left_out, "mine": {"like": "nuclei", **few, **section}}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(content | changes))
    return load(tmp_path / "my.yaml", root=tmp_path)


def test_a_data_set_of_its_own_is_a_section_and_a_label_set(tmp_path, monkeypatch):
    """No code: two folders and a YAML file, trained in all rungs that need no label of the target."""
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump(TISSUE))
    rng = np.random.default_rng(5)
    for i in range(4):
        image, mask = draw_cells(rng)
        classes = (mask > 0).astype(np.uint8)
        classes[:, :4][mask[:, :4] == 0] = 2
        for folder, pixels in (("images", image), ("masks", mask), ("classes", classes)):
            save(tmp_path / "labelled" / folder / f"{i}.tif", pixels)
        save(tmp_path / "new" / f"{i}.tif", (image // 16).astype(np.uint8))
    data = {"source": {"root": "labelled"}, "target": {"root": "new"}, "label_set": "tissue.yaml"}
    data["intensity"] = {"over": "set"}
    study = profile(tmp_path, {"data": data})
    rungs = {run.rung for run in study.runs.values() if run.domain == "mine" and run.branch == "panoptic"}
    assert rungs == {"source_only", "abn", "adabn", "control", "self_trained"}
    record = study.get("mine-panoptic-self_trained-s0")
    assert set(record.metrics["iou"]) == set(TISSUE["classes"]) and 0 <= record.metrics["pq_tissue"] <= 1
    assert record.run.spec.label_set == "tissue" and record.run.spec.validation == "source/val"
    assert study.headline(record).startswith("pq_tissue ")
    self_trained = dict(record.run.parents)["semantic"]
    assert self_trained.spec.target == "target/train:unlabelled"
    assert np.isfinite(study.get(self_trained.name).curves.to_numpy(float)).all()

    path = tmp_path / "tissue.safetensors"
    write_package(study.store, study.sources, record.run, path)
    copied = pickle.dumps(study.sources["mine"])  # as for a worker process, which reads no profile
    monkeypatch.delitem(LABEL_SETS, "tissue")
    networks = read_package(path)  # whoever gets the file has neither the YAML file nor the images
    assert (networks.label_set.classes, networks.label_set.things) == (("background", "nucleus", "debris"),
                                                                       ("nucleus",))  # fmt: skip
    assert networks.recipe.intensity == Intensity(over="set") and networks.recipe.width is None
    floor, ceiling = networks.recipe.limits
    assert 30 < floor < ceiling < 260  # of the target, a sixteenth of the intensities of the source
    result = panolib.predict(tifffile.imread(tmp_path / "new" / "0.tif"), path)
    assert result.label_names == networks.label_set.classes and result.semantic.max() < 3
    assert pickle.loads(copied).label_set == "tissue" and LABEL_SETS["tissue"].things == ("nucleus",)


def test_a_new_layout_is_an_entry_of_the_registry(tmp_path, monkeypatch):
    """It is trained on, with a label set of its own; a target with labels has an oracle, and is scored."""

    def numbered(root, split, *, label_set, with_labels, **options):
        return Folders(root / "deep" / "er", split, label_set=label_set, with_labels=with_labels, **options)

    monkeypatch.setitem(READERS, "deeper", numbered)
    (tmp_path / "cells.yaml").write_text(yaml.safe_dump({"classes": ["glass", "cell"], "things": ["cell"]}))
    rng = np.random.default_rng(5)
    for name in "abcdef":
        image, mask = draw_cells(rng)
        save(tmp_path / "mine" / "deep" / "er" / f"{name}.tif", image)
        save(tmp_path / "mine" / "deep" / "er" / f"{name}_masks.tif", mask * 100)
    folder = {"root": "mine", "reader": "deeper"}
    data = {"source": folder, "target": folder, "target_labels": True, "label_set": "cells.yaml"}
    study = profile(tmp_path, {"data": data})
    assert study.runs["mine-panoptic-oracle-s0"].spec.validation == "target/val"
    opened = {name: study.sources["mine"].open(name) for name in study.sources["mine"].own}
    assert [len(data) for data in opened.values()] == [5, 1, 5, 1]
    assert opened["target/val"][0].instance.max() == 400
    record = study.get("mine-panoptic-self_trained-s0")
    assert set(record.metrics["iou"]) == {"glass", "cell"} and 0 <= record.metrics["pq_cells"] <= 1
    assert study.get("mine-semantic-self_trained-s0").info["iterations"] == 2


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"like": "nuclie"}, r"my\.yaml: mine\.like: expected one of nuclei, found 'nuclie'"),
        ({"like": "mine"}, r"my\.yaml: mine\.like: expected one of nuclei, found 'mine'"),
        ({"data": {"source": {"root": "a"}}}, r"my\.yaml: mine\.data: target: missing key"),
        ({"data": {"source": {"root": "a"}, "target": {"rot": "a"}}}, r"data: target\.rot: unknown key"),
        ({"instance_selection": "source/test"}, r"mine\.instance_selection: expected one of source/train, "),
        ({"validation": "source/test"}, r"mine\.validation: expected one of source/train, "),
        ({"label_set": "nuclei"}, r"mine\.label_set: expected 'objects', found 'nuclei'"),
    ],
)
def test_bad_sections(tmp_path, section, message):
    data = {"source": {"root": "cells"}, "target": {"root": "cells"}}
    with pytest.raises(ProfileError, match=message):
        profile(tmp_path, {"data": data, **section})
