"""From labelled images to images without labels, in one command; and what its report warns of."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
import yaml
from safetensors.torch import save

sys.path.insert(0, str(Path(__file__).parent))
from tiny_packages import SEMANTIC, write_tiny
from toy_kinds import toy_run

from panolib.__main__ import main
from panolib.lab.store import Store
from panolib.labels import LABEL_SETS, NUCLEI
from panolib.load import load
from panolib.models.weights import WeightsError, load_start
from panolib.profiles import merged
from panolib.report.adaptation import (
    Findings,
    agreement,
    agreement_text,
    collapse_warnings,
    dissent_warning,
    findings,
    object_warnings,
    page,
)
from panolib.study.apply import PanopticResult
from panolib.study.packaged import read_package
from panolib.training.setup import build_semantic
from panolib.your_images import adapt, adapt_folder

GOOD = Findings(4, 40, 100.0, {"background": 0.8, "nucleus": 0.2}, (0.2,) * 4)
FULL = {"object_shares": (0.99, 0.2, 0.2, 0.2)}
AGREED, STEADY = {"pixels": 0.97, "objects": 0.9}, {"labelled pixels": [0.5, 0.6, 0.7, 0.7]}


def result(instances: np.ndarray) -> PanopticResult:
    areas = np.bincount(instances.ravel())
    things = [
        {"id": k, "isthing": True, "area": int(areas[k])} for k in np.flatnonzero(areas).tolist() if k > 0
    ]
    semantic = (instances > 0).astype(np.uint8)
    return PanopticResult(
        semantic, instances, instances, tuple(things), np.ones(semantic.shape, np.float32), NUCLEI.classes
    )


@pytest.mark.parametrize(
    ("after", "agreed", "curves", "words"),
    [
        ({}, {}, {}, None),
        ({"shares": {"background": 0.99, "nucleus": 0.01}}, {}, {}, "class 'nucleus' disappears: 20.0 % of"),
        ({"n_objects": 19}, {}, {}, "objects vanish: 40 before, 19 after"),
        ({"median_area": 210.0}, {}, {}, "objects merge: median area 100 pixels before, 210 after"),
        ({"median_area": 49.0}, {}, {}, "objects break up: median area"),
        ({"median_area": float("nan"), "n_objects": 0}, {}, {}, "objects vanish: 40 before, 0 after"),
        ({}, {"pixels": 0.7}, {}, "student and teacher agree on 70 % of the pixels only"),
        ({}, {"objects": 0.507}, {}, "student and teacher agree on 51 % of the objects only"),
        ({}, {}, {"labelled pixels": [0.8, 0.5, 0.4, 0.3]}, "labelled pixels dwindle: 0.8 in the first"),
    ],
)
def test_a_collapse_is_told(after, agreed, curves, words):
    lines = collapse_warnings(GOOD, replace(GOOD, **after), AGREED | agreed, STEADY | curves)
    assert len(lines) == (words is not None) and all(words in line for line in lines)


def test_networks_that_find_nothing_are_told():
    nothing = replace(GOOD, n_objects=0, median_area=float("nan"))
    (line,) = collapse_warnings(nothing, nothing, AGREED, STEADY)
    assert line.startswith("no object is found, before self-training and after")


@pytest.mark.parametrize(
    ("after", "expected", "words"),
    [
        ({}, {}, None),
        (FULL, {}, "1 of 4 images are more than 90 % object; objects have 14 % of the pixels of the source"),
        (FULL, {"source_share": 0.95}, None),
        ({"object_shares": (0.6,) * 4}, {}, "objects have 60 % of the pixels of the target; objects have"),
        ({"n_objects": 84}, {}, "too many objects? 21.0 objects an image, where Otsu's threshold parts 10.0"),
        ({"n_objects": 19}, {}, "too few objects? 4.8 objects an image"),
        ({"n_objects": 84}, {"otsu_count": None}, None),
    ],
)  # fmt: skip
def test_what_the_folders_do_not_lead_to_expect_is_told(after, expected, words):
    known = {"source_share": 0.14, "otsu_count": 10.0} | expected
    lines = object_warnings(replace(GOOD, **after), **known)
    assert len(lines) == (words is not None) and all(words in line for line in lines)


def test_networks_that_part_are_named_and_one_is_advised():
    """Counts of a target where AdaBN was right and the networks of self-training were not."""
    counts = {"source_only": 743, "adabn": 304, "self_trained": 752, "teacher": 600}
    found = {name: replace(GOOD, n_images=10, n_objects=n) for name, n in counts.items()}
    weights = {name: Path("out") / "weights" / f"{name}.safetensors" for name in counts}
    (line,) = dissent_warning(found, "self_trained", weights, 27.0)
    assert "source_only 74.3, adabn 30.4, self_trained 75.2, teacher 60.0" in line
    assert "by self_trained" in line and "predict IMAGES --weights out/weights/adabn.safetensors" in line
    assert "adabn.safetensors" in dissent_warning(found, "self_trained", weights, None)[0]
    found["adabn"] = replace(found["adabn"], n_objects=376)
    assert dissent_warning(found, "self_trained", weights, 27.0) == []


def test_agreement_and_findings_are_counts():
    first, second = np.zeros((10, 10), np.int32), np.zeros((10, 10), np.int32)
    first[:2, :5], first[5:, 5:] = 1, 2
    second[:2, :5] = 7
    assert agreement([result(first)], [result(first)]) == {"pixels": 1.0, "objects": 1.0}
    found = agreement([result(first), result(0 * first)], [result(second // 7), result(0 * first)])
    assert found == {"pixels": pytest.approx(1 - 25 / 200), "objects": pytest.approx(2 / 3)}
    neither = agreement([result(0 * first)], [result(0 * first)])
    assert agreement_text(neither) == "100.0 % of the pixels, neither finds an object"
    assert agreement_text(found) == "87.5 % of the pixels, 66.7 % of the objects"
    assert findings([result(0 * first)], NUCLEI).row()["median area, pixels"] == "no objects"
    counted = findings([result(first), result(0 * first)], NUCLEI)
    assert (counted.n_images, counted.n_objects, counted.median_area) == (2, 2, 17.5)
    assert counted.shares == {"background": pytest.approx(165 / 200), "nucleus": pytest.approx(35 / 200)}
    assert counted.object_shares == (0.35, 0.0) and counted.n_full == 0


def test_a_page_needs_no_other_file_and_escapes():
    text = page("a < b", {"w": ["x & y"], "t": pd.DataFrame({"a": [1]}), "p": b"\x89PNG", "s": "1 < 2"})
    wanted = ("a &lt; b", "x &amp; y", "<td>1</td>", "base64,iVBORw==", "1 &lt; 2")
    assert all(part in text for part in wanted)
    assert "src=\"http" not in text and "<link" not in text


def test_a_chain_takes_its_length_and_a_crowd_its_sum():
    first = toy_run("first", n_iterations=1)
    child = toy_run("child", parent=first, n_iterations=1)
    others = [toy_run(f"other{i}", seed=i + 1, n_iterations=1) for i in range(4)]
    seconds = {run.name: (10.0, 1.0) for run in (first, child)}
    assert adapt.expected_seconds([first, child], seconds, workers=2) == 20.0
    assert adapt.expected_seconds([child, first, *others], seconds, workers=2) == 30.0


@pytest.mark.parametrize(
    ("minutes", "iterations"),
    [(1000.0, [100, 60, 8]), (2.0, [70, 42, 8]), (0.01, [20, 20, 8])],  # never more, 20 where there are
)
def test_minutes_leave_a_share_of_the_iterations(minutes, iterations):
    """Each iteration takes a second, all else nothing; 8 are fewer than any training is cut to."""
    specs = [SimpleNamespace(iterations=n) for n in (100, 60, 8)]
    runs = [replace(toy_run(f"t{i}"), spec=spec) for i, spec in enumerate(specs)]
    seconds = {run.name: (1.0, 1.0) for run in runs}
    share = adapt.share_within(runs, seconds, 1, minutes)
    assert [adapt._fewer(run.spec.iterations, share) for run in runs] == iterations


def test_few_iterations_are_a_warning(cells):
    study = load(cells / "tiny.yaml", root=cells, train=False)
    ladder = replace(study.profile.ladders["nuclei"], **{
        name: {"iterations": n // 4} for name, n in adapt_folder.BUDGET.items()
    })  # fmt: skip
    few = replace(study, profile=replace(study.profile, ladders={adapt.DOMAIN: ladder}))
    assert "the networks of --start may do better" in adapt.few_iterations_warning(few, begun=True)[0]
    (line,) = adapt.few_iterations_warning(few)
    assert "may do better" not in line and "trained for 390 iterations, 25% of the default" in line
    whole = replace(ladder, **{name: {"iterations": n} for name, n in adapt_folder.BUDGET.items()})
    enough = replace(study, profile=replace(study.profile, ladders={adapt.DOMAIN: whole}))
    assert adapt.few_iterations_warning(enough) == []


@pytest.fixture
def cells(tmp_path):
    """Folders "labelled" and "few" with masks, "new" without."""
    rng = np.random.default_rng(0)
    for i in range(5):
        mask = np.zeros((64, 64), np.uint16)
        for k, (y, x) in enumerate(rng.integers(0, 50, (5, 2)), start=1):
            mask[y : y + 12, x : x + 12] = k
        image = (400 + 3000 * (mask > 0) + rng.integers(0, 200, mask.shape)).astype(np.uint16)
        for folder, kept in (("labelled", True), ("new", False), ("few", i < 2)):
            for part in ("images", "masks") if kept else ("images",):
                if folder == "few" and i > 1:
                    continue
                path = tmp_path / folder / part / f"{i}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                tifffile.imwrite(path, mask if part == "masks" else image)
    few = {"iterations": 2, "augmentation": {"height": 64, "width": 64}}
    sections = {name: few for name in ("semantic_baseline", "instance_baseline")}
    sections |= {name: {"iterations": 2} for name in ("self_training", "instance_self_training")}
    sections |= {name: {"n_batches": 1} for name in ("batch_norm", "instance_batch_norm")}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"extends": "smoke", "nuclei": sections}))
    return tmp_path


def command(cells, out="out", *options, source="labelled", target="new") -> int:
    folders = ["--source", str(cells / source), "--target", str(cells / target), "--out", str(cells / out)]
    return main(["adapt", *folders, "--profile", str(cells / "tiny.yaml"), "--workers", "1", *options])


def test_the_whole_command(cells, capsys, monkeypatch):
    monkeypatch.setattr(adapt, "REHEARSED", 2)
    stopped, out, few = [], cells / "out", str(cells / "few")
    start = str(write_tiny(cells / "start.safetensors", NUCLEI.name, seed=3, stretched=True))
    attempt = Store.attempt

    def stop_once(store, run):
        if store.root.is_relative_to(out) and run.kind == "self_training" and not stopped:
            stopped.append(run.name)
            raise KeyboardInterrupt
        return attempt(store, run)

    monkeypatch.setattr(Store, "attempt", stop_once)
    assert command(cells, "out", "--labels", few, "--start", start) == 130
    said, bars = capsys.readouterr()
    assert "median diameter, pixels" in said and "plan: 11 of 11 runs to do" in said
    assert "rehearsal: own-semantic-source_only-s0" in bars and "rehearsal: runs" in bars
    assert "semantic trains classes" in said
    assert "plan: about " in said and not (out / "weights").exists()
    monkeypatch.setattr(adapt, "full_warnings", lambda _: ["1 of 5 images is full"])
    assert command(cells, "out", "--labels", few, "--start", start) == 0
    assert f"5 images in {out / 'predictions'}" in capsys.readouterr().out
    for rung in adapt.RUNGS:
        assert read_package(out / "weights" / f"{rung}.safetensors").label_set.name == "objects"
        card = (out / "weights" / f"{rung}.md").read_text()
        assert "## Not for" in card and "Initial weights: the networks of run " in card
    recipe = read_package(out / "weights" / "teacher.safetensors").recipe
    file = out / "results" / "adapt" / "runs" / "own-cleanup-s0" / "metrics.json"
    chosen = json.loads(file.read_text())
    assert (recipe.min_size, recipe.opening) == (chosen["min_size"], chosen["opening"])
    assert recipe.rule == chosen["merge_rule"]
    text = (out / "report.html").read_text()
    assert "1 of 5 images is full" in text
    for words in ("Warnings", "Scores on 2 images", "Agreement of student and teacher", "Curves"):
        assert words in text
    assert len(list((out / "predictions" / "instances").iterdir())) == 5
    before = {path: path.stat().st_mtime_ns for path in (out / "results").rglob("run.json")}
    assert command(cells, "out", "--start", start) == 0
    assert "plan: 0 of 11 runs" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (out / "results").rglob("run.json")}
    assert command(cells, "out", "--start", start, "--diameter", "9") == 1
    assert "adapt.yaml: holds other settings, expected those of this command" in capsys.readouterr().err


def test_minutes_are_written_and_kept(cells, capsys, monkeypatch):
    """A second an iteration: 10 minutes take fewer than 100 of each training; what goes on keeps them."""
    tiny = yaml.safe_load((cells / "tiny.yaml").read_text())
    for section in adapt_folder.BUDGET:
        tiny["nuclei"][section]["iterations"] = 100
    (cells / "tiny.yaml").write_text(yaml.safe_dump(tiny))

    def measured(path, workers):
        return {name: (1.0, 1.0) for name in load(path, root=cells / "out", train=False).runs}, None

    def stop(store, runs, workers):
        store.root.mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt

    def interrupt(path, workers):
        raise KeyboardInterrupt

    def iterations():
        own = yaml.safe_load((cells / "out" / adapt_folder.PROFILE).read_text())["own"]
        return {own[section]["iterations"] for section in adapt_folder.BUDGET}

    monkeypatch.setattr(adapt, "get_all", stop)
    monkeypatch.setattr(adapt, "measured", interrupt)
    assert command(cells, "out", "--minutes", "3") == 130
    found = capsys.readouterr()
    assert "rehearsing every step, then measuring its time: a few minutes" in found.out
    assert "the same command begins with the rehearsal again" in found.err and "checkpoint" not in found.err
    monkeypatch.setattr(adapt, "measured", measured)
    assert command(cells, "out", "--minutes", "3") == 130
    found = capsys.readouterr()
    (kept,) = iterations()
    assert 20 <= kept < 100 and "last checkpoints" in found.err
    least = f"{4 * kept} of 400 iterations, at least 20 a training"
    assert f"plan: for --minutes 3 from now on {least}" in found.out
    assert "plan: about 3 minutes with 1 processes" in found.out
    assert command(cells, "out", "--minutes", "3") == 130 and iterations() == {kept}
    assert "plan: it goes on with the iterations of" in capsys.readouterr().out
    assert command(cells) == 1 and "holds other settings" in capsys.readouterr().err


@pytest.mark.parametrize("branch", ["semantic", "instance"])
def test_training_begins_with_the_networks_of_a_package(cells, branch):
    package = write_tiny(cells / "start.safetensors", NUCLEI.name, seed=3, stretched=True)
    folders = str(cells / "labelled"), str(cells / "new")
    settings = adapt_folder.profile_settings(*folders, str(cells / "tiny.yaml"), None, None)
    still = {"iterations": 1, "optimiser": {"lr": 1e-12, "weight_decay": 0.0, "warmup": 0}}
    networks = read_package(package)
    own = merged(settings["own"], adapt_folder.start_settings(networks, cells / "out"), "", "")
    own = merged(own, {f"{branch}_baseline": still}, "", "")
    path = adapt_folder.write_profile(cells / "out", settings | {"own": own})
    adapt_folder.write_start(networks, cells / "out")
    study = load(path, root=cells / "out")
    run = study.runs[f"own-{branch}-source_only-s0"]
    assert run.spec.network == getattr(networks.recipe, branch)
    assert study.sources["own"].settings.intensity == networks.recipe.intensity
    trained = study.store.final_state(run)["model"]
    for name, expected in getattr(networks, branch).named_parameters():
        torch.testing.assert_close(trained[name], expected, atol=1e-6, rtol=0)
    Path(run.spec.start).write_bytes(save({"a": torch.zeros(1)}))
    again = load(cells / "out" / adapt_folder.PROFILE, root=cells / "out")
    assert again.runs[run.name].key != run.key
    with pytest.raises(WeightsError, match=rf"start .*{branch}-0+\.safetensors: a is in one of network and"):
        again.store.final_state(again.runs[run.name])


def test_intensity_goes_before_that_of_the_networks(cells, monkeypatch):
    """Networks of 8 bits begin, images have 16: percentiles are trained with and kept with the weights."""
    package = write_tiny(cells / "eight.safetensors", NUCLEI.name)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(adapt, "_print_plan", stop)
    options = ["--start", str(package), "--intensity", "2", "99"]
    assert [command(cells, "out", *options) for _ in range(2)] == [130, 130]
    study = load(cells / "out" / adapt_folder.PROFILE, root=cells / "out", train=False)
    expected = {"percentiles": [2.0, 99.0], "over": "image"}
    assert study.sources["own"].preprocessing()["intensity"] == expected


def test_classes_are_learned_anew_where_there_are_others(tmp_path):
    model, other = (build_semantic(SEMANTIC, n, pretrained=False) for n in (2, 3))
    (tmp_path / "a.safetensors").write_bytes(save(other.state_dict()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_start(model, tmp_path / "a.safetensors")
    given = other.state_dict()
    kept = [name for name, value in before.items() if value.shape != given[name].shape]
    assert kept == ["branches.0.weight", "branches.0.bias"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in kept else given[name])
    given[next(iter(given))] = torch.zeros(1, 2)
    (tmp_path / "b.safetensors").write_bytes(save(given))
    with pytest.raises(WeightsError, match=r"b\.safetensors: .* has shape .*, expected"):
        load_start(model, tmp_path / "b.safetensors")


def test_files_of_others_stay(cells, capsys):
    """A folder is this command's by its profile; what others put there before is not touched."""
    (cells / "out").mkdir()
    (cells / "out" / "report.html").write_text("mine")
    assert command(cells) == 1
    assert "report.html: was not written by this command, expected another --out" in capsys.readouterr().err
    assert [path.name for path in (cells / "out").iterdir()] == ["report.html"]
    assert command(cells, "other", source="gone") == 1 and not (cells / "other").exists()
    for name in ("empty", "void"):
        (cells / name).mkdir()
    assert command(cells, "other", source="empty") == 1
    assert not (cells / "other").exists()
    (cells / "other").mkdir()
    assert command(cells, "other", source="void") == 1 and not list((cells / "other").iterdir())
    adapt_folder.write_profile(cells / "other", {"description": adapt_folder.DESCRIPTION})
    assert command(cells, "other", source="void") == 1 and (cells / "other" / "adapt.yaml").exists()
    assert "was not written" not in capsys.readouterr().err


def test_all_that_is_wrong_is_told_at_once(cells, capsys):
    (cells / "labelled" / "masks" / "1.tif").write_bytes(b"")
    (cells / "new" / "images" / "2.tif").write_bytes(b"half")
    assert command(cells) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and "masks/1.tif" in lines[0] and "images/2.tif" in lines[1]
    assert all(line.endswith("; remove or repair it") for line in lines)
    assert not (cells / "out" / "results").exists()


def test_a_folder_that_lacks_a_mask_has_no_sizes(cells, capsys):
    (cells / "labelled" / "masks" / "1.tif").unlink()
    assert command(cells) == 1
    found = capsys.readouterr()
    assert "1 of 5 images have no mask, the first is 1" in found.err and not found.out


def test_problems_are_told_once_and_the_first_of_many(cells, capsys):
    for i in range(12):
        (cells / "new" / "images" / f"broken{i:02d}.tif").write_bytes(b"")
    assert command(cells) == 1
    found = capsys.readouterr()
    lines = found.err.strip().splitlines()
    assert len(lines) == 11 and lines[-1] == "and 2 more"
    assert [f"broken{i:02d}.tif" in line for i, line in enumerate(lines[:10])] == [True] * 10
    assert "broken" not in found.out


@pytest.mark.parametrize("profile", [None, "cpu"])
def test_classes_of_ones_own_and_the_budget(cells, profile):
    """Whatever else a profile trains on nuclei, which may need two classes, is left out."""
    three = {"classes": ["ground", "cell", "debris"], "things": ["cell"]}
    (cells / "three.yaml").write_text(yaml.safe_dump(three))
    folders = str(cells / "labelled"), str(cells / "new")
    settings = adapt_folder.profile_settings(*folders, profile, str(cells / "three.yaml"), 9.0)
    study = load(adapt_folder.write_profile(cells / "out", settings), root=cells / "out", train=False)
    own = {name: run for name, run in study.runs.items() if run.domain == "own"}
    assert {run.rung for run in own.values()} >= set(adapt.RUNGS) and study.seeds == (0,)
    assert {run.domain for run in study.runs.values()} == {"own", "nuclei"}
    assert study.sources["own"].settings.target.diameter == 9.0
    assert own["own-semantic-source_only-s0"].spec.label_set == "three"
    for branch in ("semantic", "instance"):  # as the report says, whatever the profile starts from
        assert dict(own[f"own-{branch}-self_trained-s0"].parents)["start"].rung == "adabn"
    assert own["own-instance-source_only-s0"].spec.selection_tolerance == 0.01
    other = study.runs["nuclei-semantic-source_only-s0"].spec.iterations
    iterations = own["own-semantic-source_only-s0"].spec.iterations
    assert iterations == (adapt_folder.BUDGET["semantic_baseline"] if profile is None else other)
    del LABEL_SETS["three"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "none"}, "none: no such folder, expected one of images"),
        ({"source": "new", "target": "labelled"}, "new: no masks, expected masks/X"),
    ],
)
def test_bad_folders_are_one_line(cells, capsys, options, words):
    assert command(cells, **options) == 1
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
    assert command(cells, source="gone") == 1  # and what was mistyped can be mended in the same folder
    assert "gone: no such folder" in capsys.readouterr().err.strip().splitlines()[-1]
