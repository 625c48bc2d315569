"""Self-training of embeddings with a setting or two changed, beside the ladder's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from panolib.config import ProfileError
from panolib.load import load
from panolib.profiles import load_yaml, project_root

ABLATIONS = {"rate": {"optimiser": {"lr": 0.125}}, "norm": {"batch_norm": "frozen"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("ablations")
    profile = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
    nuclei = profile["nuclei"]
    nuclei["data"]["embedded"] |= {"n_train": 4, "n_val": 2}
    for section in ("semantic_baseline", "self_training", "instance_baseline", "instance_self_training"):
        nuclei.setdefault(section, {})["iterations"] = 2
    nuclei["instance_ablations"], nuclei["score_teachers"] = ABLATIONS, True
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return path, load(path, root=root, train=False)


def of_ablations(loaded):
    return [tag for tag in loaded.tags if tag.experiment == "nuclei ablations"]


def test_an_ablation_changes_what_it_names_and_nothing_else(tiny):
    _, loaded = tiny
    trained = {
        tag.values["ablation"]: loaded.runs[tag.run]
        for tag in of_ablations(loaded) if loaded.runs[tag.run].branch == "instance"
    }  # fmt: skip
    assert list(trained) == ["start", "none", "rate", "norm"]
    none = trained["none"]
    assert none.name == "nuclei-instance-self_trained-s0"
    assert dict(none.parents)["start"] == trained["start"]
    rate = replace(none.spec, optimiser=replace(none.spec.optimiser, lr=0.125))
    assert trained["rate"].spec == rate != none.spec
    assert none.spec.batch_norm == "target"
    assert trained["norm"].spec == replace(none.spec, batch_norm="frozen")
    assert trained["rate"].parents == trained["norm"].parents == none.parents
    assert trained["rate"].data == none.data


def test_all_are_scored_in_the_same_masks_on_target_and_source(tiny):
    _, loaded = tiny
    scores = [loaded.runs[tag.run] for tag in of_ablations(loaded)]
    scores = [run for run in scores if run.branch == "panoptic"]
    masks = {dict(run.parents)["semantic"].name for run in scores}
    assert masks == {"nuclei-semantic-self_trained-s0"}
    asked = {(run.variant, run.spec.scored, run.spec.validation) for run in scores}
    sets = {"": "nuclei/val", ".source": "nuclei_scenes/val"}
    wanted = {
        ("" if (name, where) == ("none", "") else f"ablation.{name}{where}", network, data)
        for name in ("start", "none", "rate", "norm")
        for where, data in sets.items()
        for network in (("student", "teacher") if name != "start" else ("student",))
    }
    assert asked == wanted


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"same": {}}, "same: expected settings that differ from instance_self_training"),
        ({"same": {"batch_norm": "target"}}, "same: expected settings that differ"),
        ({"none": {"batch_norm": "frozen"}}, "none: expected another name, 'none' is taken"),
        ({"a": {"batchnorm": "frozen"}}, "nuclei.instance_ablations.a: batchnorm: unknown key"),
        ({"a": {"optimiser": {"rate": 0.1}}}, "optimiser.rate: unknown key"),
    ],
)
def test_what_is_no_ablation_is_said(tiny, section, message):
    path, _ = tiny
    profile = yaml.safe_load(path.read_text())
    profile["nuclei"]["instance_ablations"] = section
    wrong = path.with_name("wrong.yaml")
    wrong.write_text(yaml.safe_dump(profile, sort_keys=False))
    with pytest.raises(ProfileError, match=message.replace(".", r"\.")):
        load(wrong, root=path.parent, train=False)
