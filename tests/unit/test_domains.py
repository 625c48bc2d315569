"""A new data set is one reader that is registered, and a label set: the study then covers it."""

from __future__ import annotations

import copy
from dataclasses import replace
from unittest import mock

import cv2
import numpy as np
import pytest

from panolib.config import ProfileError
from panolib.data.domains import RealImages, register
from panolib.data.folders import FolderSet, label_files, list_images
from panolib.data.readers import DOMAINS
from panolib.dry_run import make_plan
from panolib.labels import CITYSCAPES, LABEL_SETS, LabelSet
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.study.study import PERFORMANCE

SIZE = (32, 64)
LANES = LabelSet(
    name="lanes",
    classes=("road", "else"),
    colours=((128, 64, 128), (0, 0, 0)),
    things=(),
    file_ids=(1, 2),
    subsets={"2": ("road", "else")},
    merges={"cityscapes": {"road": ("road",), "else": tuple(CITYSCAPES.classes[1:])}},
)


class Masks(FolderSet):
    """{split}/images/*.png with an index PNG of the same name in {split}/masks."""

    def __init__(self, root, split, label_set, *, with_labels):
        self.class_of_id = dict(zip(label_set.file_ids, label_set.classes))
        folder, labels = root / split, None
        images = list_images(folder / "images", "*.png", "images")
        if with_labels:
            labels = label_files(images, folder / "masks", "*.png", "masks")
        super().__init__("toy", label_set, images, images, labels)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A function that registers the domain "toy" with a label set; its images are there."""

    def registered(label_set: LabelSet) -> None:
        monkeypatch.setitem(LABEL_SETS, label_set.name, label_set)
        monkeypatch.setitem(DOMAINS, "toy", None)  # taken out again after the test

        @register("toy")
        class ToyStreets(RealImages):
            source_domain = "city"

            def read(self, split, with_labels):
                return Masks(self.root, split, label_set, with_labels=with_labels)

        ToyStreets.label_set = label_set.name
        for split, n_images in (("train", 3), ("val", 2)):
            for folder in ("images", "masks"):
                (tmp_path / "toy" / split / folder).mkdir(parents=True)
            for i in range(n_images):
                mask = np.full(SIZE, label_set.file_ids[i % 2], np.uint8)
                cv2.imwrite(str(tmp_path / f"toy/{split}/images/{i}.png"), np.full((*SIZE, 3), 9, np.uint8))
                cv2.imwrite(str(tmp_path / f"toy/{split}/masks/{i}.png"), mask)

    return registered


def study_of(tmp_path, section: dict, **changes):
    """Profile smoke with a section for the toy."""
    profile = copy.deepcopy(load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml"))
    file = tmp_path / "my.yaml"
    file.touch()
    with mock.patch("panolib.study.settings.load_yaml", lambda path: profile | {"toy": section} | changes):
        return load(file, root=tmp_path, train=False)


DATA = {"root": "toy", "size": None, "fingerprint": None}


def test_a_registered_data_set_is_a_further_target(toy, tmp_path):
    """As CamVid: networks of the city are adapted to it and scored on it, in its own classes."""
    toy(LANES)
    study = study_of(tmp_path, DATA)
    kinds = {run.kind for run in study.runs.values() if run.domain == "toy"}
    assert {"transfer", "self_training", "adversarial_adaptation", "detr_scores"} <= kinds
    oracle = study.runs["toy-semantic-oracle-bisenet-s0"]
    assert (oracle.spec.source, oracle.spec.label_set) == ("toy/train", "lanes")
    assert study.runs["toy-semantic-self_trained-bisenet-s0"].spec.source == "mix/train"

    data = study.sources["toy"]
    assert data.available() and data.folders == {"toy": tmp_path / "toy"}
    assert data.open("toy/val")[1].semantic.tolist() == np.ones(SIZE).tolist()
    assert data.open("toy/train:unlabelled")[0].semantic is None
    assert data.fingerprint("toy/train").endswith(":None:toy/train")
    assert data.fingerprint("synthia/val") == study.sources["city"].fingerprint("synthia/val")
    asked = {name: study.runs[name] for names in study.notebooks.values() for name in names}
    plan = make_plan(study, asked.values(), workers=1)
    assert plan.problems == []
    assert {row[1] for row in plan.rows if row[0] == "toy"} >= {"transfer", "self_training"}
    assert any(line.startswith("data of toy, images: ") and "toy/train 3" in line for line in plan.lines)


def test_a_further_target_has_a_ladder_of_the_main_network(toy, tmp_path):
    """It starts from the source-only network of the main domain, and says only what is otherwise."""
    toy(LANES)
    ladder = {"self_training": {"iterations": 2, "augmentation": {"height": 32}}}
    study = study_of(tmp_path, DATA | {"ladder": ladder})
    found = [study.runs[tag.run] for tag in study.tags if tag.experiment == "toy ladder"]
    found = {run.rung: run for run in found}
    assert set(found) == {"source_only", "abn", "adabn", "control", "self_trained", "oracle"}
    main = study.runs["city-semantic-self_trained-s0"].spec
    assert found["source_only"].kind == "transfer"
    assert found["source_only"].parents[0][1].key == study.runs["city-semantic-source_only-s0"].key
    trained = found["self_trained"].spec
    assert (trained.target, trained.label_set) == ("toy/train:unlabelled", "cityscapes")
    assert trained.iterations == 2
    assert (trained.augmentation.height, trained.augmentation.width) == (32, main.augmentation.width)
    assert found["oracle"].spec.label_set == "lanes" and found["control"].spec.target_weight == 0
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy\.ladder: .*steps"):
        study_of(tmp_path, DATA | {"ladder": {"steps": 1}})


def test_a_registered_data_set_with_its_own_sections_is_a_ladder(toy, tmp_path):
    toy(CITYSCAPES)
    city = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")["city"]
    section = {**city, "data": DATA, "target": "toy", "gap": None, "cleanup": None}
    study = study_of(tmp_path, section)
    ladder = [run for name, run in study.runs.items() if name.startswith("toy-panoptic-")]
    assert len(ladder) == 6 and study.sources["toy"].label_set == "cityscapes"
    plan = make_plan(study, ladder, workers=1)
    assert plan.problems == []
    assert {row[1] for row in plan.rows if row[0] == "toy"} >= {"panoptic", "instance_self_training"}
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy\.gap: expected null"):
        study_of(tmp_path, {**section, "gap": city["gap"]})
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy\.target: expected one of toy/train, "):
        study_of(tmp_path, {**section, "target": "toys"})


def test_any_ladder_may_be_the_main_one(toy, tmp_path):
    """The thesis's experiments and the other systems then run there."""
    toy(CITYSCAPES)
    city = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")["city"]
    study = study_of(tmp_path, {**city, "data": DATA, "target": "toy", "gap": None}, main="toy")
    assert {run.domain for run in study.runs.values() if run.kind in ("threat", "latency")} == {"toy"}
    assert {run.domain for run in study.runs.values() if run.kind == "performance"} == {"toy"}
    assert "city-panoptic-oracle-s0" in study.runs


def test_performance_takes_the_embeddings_of_the_domain_that_the_profile_names(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text("extends: smoke\nperformance: {domain: nuclei}\n")
    run = load(path, root=tmp_path).runs[PERFORMANCE]
    assert (run.name, run.domain, run.spec.label_set) == ("performance", "nuclei", "nuclei")
    assert run.spec.validation == "nuclei_scenes/val"
    assert dict(run.parents)["instance"].name == "nuclei-instance-source_only-s0"
    path.write_text("extends: smoke\nperformance: {domain: nuclei}\nnuclei: null\n")
    with pytest.raises(ProfileError, match=r"performance\.domain: found 'nuclei', expected one of city$"):
        load(path, root=tmp_path)


def test_a_label_set_that_cannot_be_scored_is_an_error_of_the_profile(toy, tmp_path, monkeypatch):
    """Not of the run that needs it, hours later."""
    toy(replace(LANES, merges={}))
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy: classes of 'cityscapes' cannot be merged into"):
        study_of(tmp_path, DATA)
    monkeypatch.setitem(LABEL_SETS, "lanes", replace(LANES, merges={"cityscapes": {"road": ("road",)}}))
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy: no class of 'lanes' takes sidewalk, building, "):
        study_of(tmp_path, DATA)
    monkeypatch.delitem(LABEL_SETS, "lanes")
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy: its label set 'lanes' is none of .*LABEL_SETS"):
        study_of(tmp_path, DATA)


def test_a_setting_that_the_domain_does_not_have_names_the_section(toy, tmp_path):
    toy(LANES)
    with pytest.raises(ProfileError, match=r"^my\.yaml: toy: size: expected"):
        study_of(tmp_path, {**DATA, "size": "large"})
