"""Networks that leave the study in one file predict what they were scored for, and say what they are."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from tiny_runs import tiny_city

from panolib import commands
from panolib.__main__ import main
from panolib.data.errors import MissingData
from panolib.inference.panoptic import predict_panoptic
from panolib.lab.pack import halved, single
from panolib.labels import LABEL_SETS
from panolib.report.model_card import _score_lines, model_card
from panolib.study import packaged
from panolib.study.apply import scale_for
from panolib.study.packaged import (
    NoWeights,
    measured_objects,
    packaged_runs,
    read_package,
    write_package,
)
from panolib.study.parents import trained_network


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return tiny_city(tmp_path_factory.mktemp("packaged"))


@pytest.fixture(scope="module", params=["teacher", "source_only", "self_trained-shared"])
def written(study, request, tmp_path_factory):
    """(panoptic run, file of its networks)."""
    run = study.runs[f"city-panoptic-{request.param}-s0"]
    path = tmp_path_factory.mktemp("files") / "networks.safetensors"
    write_package(study.store, study.sources, run, path)
    return run, path


def networks_of(study, run):
    """The networks of a panoptic run as its scores took them, kernels rounded to half precision."""
    found = []
    for branch, parent in zip(("semantic", "instance"), packaged_runs(run)):
        state = study.store.final_state(parent)
        state = state["teacher"] if run.rung == "teacher" else state["model"]
        model = trained_network(parent.spec, {"model": single(halved(state))}, run.spec.compute)
        found.append(getattr(model, branch, model))
    return found


def test_a_file_predicts_what_the_networks_of_the_study_predict(study, written):
    run, path = written
    sample = study.sources["city"].open(run.spec.validation)[0]
    chosen = study.store.get(dict(run.parents)["clustering"]).metrics
    expected = predict_panoptic(
        *networks_of(study, run), sample, LABEL_SETS[run.spec.label_set], rule=run.spec.merge_rules[0],
        min_size=run.spec.min_size, bandwidth=chosen["bandwidth"], delta_dist=chosen["delta_dist"],
    )  # fmt: skip
    networks = read_package(path)
    assert (networks.recipe.width, networks.recipe.intensity) == (sample.image.shape[1], None)
    assert networks.label_set == LABEL_SETS[run.spec.label_set]
    found = networks.predict(replace(sample, semantic=None, instance=None))
    assert torch.equal(found.outputs.probabilities, expected.outputs.probabilities)
    assert torch.equal(found.outputs.embeddings, expected.outputs.embeddings)
    assert np.array_equal(found.panoptic[0], expected.panoptic[0])
    assert found.panoptic[1] == expected.panoptic[1]


def test_weights_are_halves_and_statistics_are_not(written):
    _, path = written
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    assert {t.dtype for t in tensors.values() if t.ndim > 1} == {torch.float16}
    variances = [tensor for name, tensor in tensors.items() if name.endswith("running_var")]
    assert variances and all(tensor.dtype == torch.float32 for tensor in variances)
    whole = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert path.stat().st_size < 1.2 * whole + 100_000


def test_small_files_round_large_kernels_to_255_steps_a_channel(study, tmp_path, monkeypatch):
    """And nothing else; the file is then read like any other."""
    monkeypatch.setattr(packaged, "LARGE", 500)
    run = study.runs["city-panoptic-teacher-s0"]
    files = [tmp_path / "half.safetensors", tmp_path / "small.safetensors"]
    for path, small in zip(files, (False, True)):
        write_package(study.store, study.sources, run, path, small=small)
    assert files[1].stat().st_size < 0.75 * files[0].stat().st_size
    states = [{**read_package(path).semantic.state_dict(), **{
        f"instance.{name}": tensor for name, tensor in read_package(path).instance.state_dict().items()
    }} for path in files]  # fmt: skip
    rounded = 0
    for (name, half), small in zip(states[0].items(), states[1].values()):
        if half.ndim > 1 and half.numel() >= 500:
            step, of_half = half.flatten(1).abs().amax(1) / 127, 1e-3 * half.abs().max()
            assert ((small - half).flatten(1).abs().amax(1) <= 0.51 * step + of_half).all(), name
            rounded += 1
        else:
            assert torch.equal(small, half), name
    assert rounded > 3
    cards = [model_card(study.store, study.sources, run, read_package(path).recipe, path.name, small=small)
             for path, small in zip(files, (False, True))]  # fmt: skip
    assert ["8 bits" in card for card in cards] == [False, True]


def test_a_kernel_without_a_weight_stays_nothing():
    tensors = {"a": torch.zeros(200, 100), "b": torch.ones(3)}
    found = packaged.eight_bits(tensors)
    assert found["a"].dtype == torch.int8 and not found["a"].any() and found["b"] is tensors["b"]


def test_a_card_says_scores_with_their_intervals_and_what_taught_the_networks(study, written):
    run, path = written
    card = model_card(study.store, study.sources, run, read_package(path).recipe, path.name)
    record = study.store.get(run)
    line = next(line for line in card.splitlines() if line.startswith("| PQ | 19 |"))
    _, _, value, between = [cell.strip() for cell in line.strip("|").split("|")]
    low, high = map(float, between.split(" to "))
    assert value == f"{100 * record.metrics['pq_19']:.1f}" and low <= float(value) <= high
    ends = [float(end) for pair in re.findall(r"\| (\S+ to \S+) \|", card) for end in pair.split(" to ")]
    assert len(ends) > 4 and 0 <= min(ends) and max(ends) <= 100  # two images: intervals would go beyond
    baselines = [line for line in card.splitlines() if "source_only" in line and "baseline" in line]
    assert baselines and all(f"| {3} |" in line and "/train (" in line for line in baselines)
    assert "cityscapes/train (" not in card  # labelled images of the target
    for parent in packaged_runs(run):
        assert f"| {parent.name} |" in card


def test_a_card_says_which_images_are_drawn_and_how_large_objects_were(study, written, monkeypatch):
    run, path = written
    recipe, city = read_package(path).recipe, study.sources["city"]
    card = model_card(study.store, study.sources, run, recipe, path.name)
    assert "cityscapes/val (2 images, rendered)" in card and "No photograph of a street" in card
    assert "median diameter" not in card  # its images are resized
    monkeypatch.setattr(type(city), "own_scale", True)
    monkeypatch.setattr(type(city), "is_rendered", lambda self, name: not name.startswith("cityscapes"))
    card = model_card(study.store, study.sources, run, recipe, path.name)
    assert "cityscapes/val (2 images)" in card and "No photograph" not in card
    name = packaged_runs(run)[1].spec.source
    sizes = np.concatenate([
        np.sqrt(4 / np.pi * np.unique(sample.instance[sample.instance > 0], return_counts=True)[1])
        for sample in city.open(name)
    ])  # fmt: skip
    assert f"Objects of {name} have a median diameter of {np.median(sizes):.0f} pixels" in card
    assert "--diameter" not in card  # the file was written without


def test_a_file_stores_how_large_the_objects_were_that_taught_its_networks(
    study, written, tmp_path, monkeypatch
):
    run, path = written
    city, recipe = study.sources["city"], read_package(path).recipe
    assert recipe.diameter is None and recipe.share is None and recipe.width
    monkeypatch.setattr(type(city), "own_scale", True)
    recipe = write_package(study.store, study.sources, run, tmp_path / "own.safetensors")
    assert recipe == read_package(tmp_path / "own.safetensors").recipe and recipe.width is None
    names = {parent.spec.source for parent in packaged_runs(run)}
    assert set(measured_objects(city, run)) == names
    samples = [sample for name in names for sample in city.open(name)]
    maps = [sample.instance[sample.instance > 0] for sample in samples]
    areas = np.concatenate([np.unique(each, return_counts=True)[1] for each in maps])
    assert recipe.diameter == round(np.median(np.sqrt(4 / np.pi * areas)), 1) > 1
    share = max(np.isin(sample.semantic, recipe.label_set.thing_ids).mean() for sample in samples)
    assert 0 < share <= recipe.share < share + 2e-5
    card = model_card(study.store, study.sources, run, recipe, "own.safetensors", initial="mine: run a")
    assert "without labels. Initial weights: mine: run a, which began with none, trained" in card
    assert f"`predict --diameter N` resizes images so that N pixels become {recipe.diameter:g}." in card
    assert f"cover at most {100 * recipe.share:.0f} % of an image" in card
    assert scale_for(recipe, None, 2 * recipe.diameter) == 0.5

    def gone(self, name):
        raise MissingData(name)

    monkeypatch.setattr(type(city), "object_sizes", gone)
    recipe = write_package(study.store, study.sources, run, tmp_path / "own.safetensors")
    assert recipe.diameter is None and recipe.share is None
    assert "iameter" not in model_card(study.store, study.sources, run, recipe, "own.safetensors")


def test_a_card_of_one_image_has_no_interval_and_none_of_a_class_a_score(study, written):
    run, path = written
    record, recipe = study.store.get(run), read_package(path).recipe
    counts = {name: of_images[:1] for name, of_images in record.counts.items()}
    one = replace(record, counts=counts, metrics=record.metrics | {"pq_16": float("nan")})
    lines = _score_lines(one, recipe.label_set.subsets, recipe.rule)
    assert "| PQ | 16 | - |  |" in lines and f"| PQ | 19 | {100 * record.metrics['pq_19']:.1f} |  |" in lines
    assert "nan" not in "".join(lines)


def test_a_run_without_both_networks_is_refused(study, tmp_path):
    with pytest.raises(NoWeights, match="is of kind 'self_training', expected a panoptic run"):
        run = study.runs["city-semantic-self_trained-s0"]
        write_package(study.store, study.sources, run, tmp_path / "a.safetensors")
    shared, other = (study.runs[f"city-panoptic-source_only{x}-s0"] for x in ("-shared", ""))
    parents = dict(other.parents) | {"semantic": dict(shared.parents)["semantic"]}
    with pytest.raises(NoWeights, match="expected one shared"):
        packaged_runs(replace(other, parents=tuple(parents.items())))
    assert not list(tmp_path.iterdir())


def test_what_is_no_package_is_one_clear_error(written, tmp_path):
    _, path = written
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors: is not there, expected"):
        read_package(tmp_path / "none.safetensors")
    broken = tmp_path / "broken.safetensors"
    for content in (b"", b"no tensors", path.read_bytes()[:2000]):
        broken.write_bytes(content)
        with pytest.raises(NoWeights, match=r"broken\.safetensors: expected .* cannot be read"):
            read_package(broken)
    save_file({"a": torch.zeros(2)}, broken)
    with pytest.raises(NoWeights, match="no entry 'panolib'"):
        read_package(broken)
    with safe_open(path, "pt") as file:
        text = file.metadata()[packaged.ENTRY]
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for changed, message in (
        (text.replace('"format": 2', '"format": 1'), "format"),
        (text.replace('"things": ["person"', '"things": ["people"'), "things .'people'., expected names"),
        (text.replace('"colours": [[', '"colours": [[1, 2, 3], ['), "a colour and a file id for each of 19"),
        (text.replace('"min_size": ', '"min_size": -'), "min_size"),
        ("[1]", "top level: expected the keys of Recipe"),
        ("{", "expected a safetensors file"),
    ):
        save_file(tensors, broken, metadata={packaged.ENTRY: changed})
        with pytest.raises(NoWeights, match=message):
            read_package(broken)
    del tensors[next(iter(tensors))]
    save_file(tensors, broken, metadata={packaged.ENTRY: text})
    with pytest.raises(NoWeights, match="weights that do not fit"):
        read_package(broken)


def test_the_command_writes_file_and_card_and_needs_no_images_for_recorded_runs(study, tmp_path, monkeypatch):
    name = "city-panoptic-source_only-s0"
    study.get(name)
    monkeypatch.setattr(commands, "load", lambda profile, **_: study)
    monkeypatch.setattr(type(study), "prepare_data", lambda *_, **__: pytest.fail("images were prepared"))
    command = ["weights", "--profile", "smoke", "--run", name, "--out"]
    assert main([*command, str(tmp_path / "a" / "city.safetensors")]) == 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"city.safetensors", "city.md"}
    assert "city.safetensors" in (tmp_path / "a" / "city.md").read_text()
    with pytest.raises(SystemExit, match=r"city\.pt: expected a file name that ends in \.safetensors"):
        main([*command, str(tmp_path / "city.pt")])


def test_a_recorded_run_is_as_good_as_its_file(study, tmp_path, monkeypatch, capsys):
    name, image = "city-panoptic-source_only-s0", tmp_path / "images" / "a.png"
    image.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)).save(image)
    study.get(name)
    write_package(study.store, study.sources, study.runs[name], tmp_path / "a.safetensors")
    asked = []
    monkeypatch.setattr(commands, "load", lambda profile, **_: asked.append(profile) or study)
    for weights, out in ((name, "run"), (name, "run"), (str(tmp_path / "a.safetensors"), "file")):
        assert main(["predict", str(image), "--weights", weights, "--out", str(tmp_path / out)]) == 0
    assert asked == ["cpu", "cpu"]  # and the second time all was there
    found = [(tmp_path / out / "instances" / "a.tif").read_bytes() for out in ("run", "file")]
    assert found[0] == found[1]
    monkeypatch.setattr(commands, "without_weights", lambda store, runs: [runs[0]])
    assert main(["predict", str(image), "--weights", name, "--out", str(tmp_path / "none")]) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"weights {name!r}: not trained on this machine: city-semantic-source_only-s0; expected" in line
