"""The momentum network of self-training is kept beside the student, and scored where it is asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny_city

from panolib.config import canonical_json
from panolib.data.images import read_indices
from panolib.inference.predict import predict_image
from panolib.lab.files import CorruptCheckpoint, load_checkpoint, save_checkpoint
from panolib.labels import CITYSCAPES
from panolib.report.rows import rows
from panolib.study.export import export_run
from panolib.study.parents import has_teacher, trained_network


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A tiny city whose teachers are a rung of the ladder."""
    return tiny_city(tmp_path_factory.mktemp("teachers"))


def run(study, branch: str, rung: str):
    return study.runs[f"city-{branch}-{rung}-s0"]


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("branch", ["semantic", "instance"])
def test_self_training_keeps_both_networks_and_its_control_one(study, branch):
    state, control = (
        study.store.final_state(run(study, branch, rung)) for rung in ("self_trained", "control")
    )
    start = study.store.final_state(run(study, branch, "adabn"))["model"]
    assert sorted(state) == ["model", "teacher"] and sorted(control) == ["model"]
    assert state["teacher"].keys() == state["model"].keys() == start.keys()
    assert not equal(state["teacher"], state["model"]) and not equal(state["teacher"], start)
    assert [has_teacher(run(study, branch, rung)) for rung in ("source_only", "control", "self_trained")] == [
        False, False, True,
    ]  # fmt: skip


def test_teachers_are_a_rung_of_their_own(study):
    student, teacher = (study.get(run(study, "semantic", rung).name) for rung in ("self_trained", "teacher"))
    assert teacher.metrics == student.metrics["teacher"]
    assert teacher.metrics["iou"] != student.metrics["iou"]
    found = rows(study, "city ladder", branch="semantic", rung=["self_trained", "teacher"], metric="miou_19")
    assert found.set_index("rung")["value"].to_dict() == {
        "self_trained": student.metrics["miou_19"], "teacher": teacher.metrics["miou_19"]
    }  # fmt: skip


def test_the_panoptic_teacher_takes_both_teachers(study):
    semantic = study.get(run(study, "semantic", "teacher").name).metrics
    panoptic = run(study, "panoptic", "teacher")
    metrics = study.get(panoptic.name).metrics
    assert metrics["iou"] == semantic["iou"]
    student = replace(panoptic, name="students", spec=replace(panoptic.spec, scored="student"))
    assert (
        study.store.get(student).metrics["iou"] == study.get("city-semantic-self_trained-s0").metrics["iou"]
    )


def test_the_student_is_what_was_always_scored(study):
    panoptic = run(study, "panoptic", "self_trained")
    assert panoptic.spec.scored == "student" and "scored" not in canonical_json(panoptic.spec)
    assert all('"guide"' not in canonical_json(r.spec) for r in study.runs.values() if r.branch == "instance")


def test_masks_of_the_teacher_guide_where_they_are_asked_for(study):
    trained = run(study, "instance", "self_trained")
    guided = replace(trained, name="guided", spec=replace(trained.spec, guide="teacher"))
    assert guided.key != trained.key
    study.store.get(guided)
    assert not equal(*(study.store.final_state(r)["model"] for r in (trained, guided)))


def test_weights_without_a_teacher_are_named(study):
    trained = run(study, "semantic", "self_trained")
    study.get(trained.name)
    file = study.store.folder(trained) / "checkpoint.pt"
    kept = load_checkpoint(file, "")
    save_checkpoint(file, {**kept, "state": {"model": kept["state"]["model"]}})
    asked = run(study, "semantic", "teacher")
    with pytest.raises(CorruptCheckpoint, match=r"self_trained-s0': expected .*student and teacher.*delete"):
        study.store.get(asked, anew=True)
    save_checkpoint(file, kept)
    study.store.get(asked, anew=True)


def test_what_is_exported_is_what_was_scored(study, tmp_path):
    panoptic = run(study, "panoptic", "teacher")
    teacher = trained_network(
        run(study, "semantic", "self_trained").spec,
        {"model": study.store.final_state(run(study, "semantic", "self_trained"))["teacher"]},
        panoptic.spec.compute,
    )
    export_run(study.store, study.sources, panoptic, tmp_path / "out")
    validation = study.sources["city"].open(panoptic.spec.validation)
    written = sorted((tmp_path / "out" / "semantic").rglob("*_labelIds.png"))
    assert len(written) == len(validation)
    for sample in validation:
        expected = CITYSCAPES.file_id_table()[predict_image(teacher, None, sample).semantic.numpy()]
        (path,) = [path for path in written if sample.id.rsplit("/")[-1] in path.name]
        assert (read_indices(path) == expected).all()
