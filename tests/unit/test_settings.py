"""What a user may change in a profile: seeds, sections, words, numbers, names and paths."""

from __future__ import annotations

import copy
import functools
import os
import subprocess
import sys
from types import SimpleNamespace
from unittest import mock

import pytest

from panolib.clustering.algorithms import ALGORITHMS, IMAGE_ALGORITHMS
from panolib.config import ProfileError, from_mapping
from panolib.load import load as load_study
from panolib.models.weights import check_encoder_weights
from panolib.profiles import load_yaml, project_root
from panolib.related.realtime.runs import Realtime
from panolib.report import rows
from panolib.study import study
from panolib.study.settings import MissingSection, read_profile

PROFILES = project_root() / "notebooks" / "profiles"
OPTIONAL = ("nuclei", "camvid", "experiments", "detr", "performance", "realtime", "refinement",
            "objectness", "method", "active", "views")  # fmt: skip
EXPERIMENTS = ("01_dataset_mixing", "02_clustering_comparison", "03_category_models", "04_forgetting",
               "05_guided_masks", "06_instance_results")  # fmt: skip


@functools.cache
def shipped(name):
    return load_yaml(PROFILES / f"{name}.yaml")


def load(tmp_path, changes, *, base="smoke"):
    """The study of a profile with changed values: {"city.batch_norm.momentum": 0.2}; `...` removes a key.

    The changed values are handed over without writing and parsing YAML, which takes longer than all the rest.
    """
    profile = copy.deepcopy(shipped(base))
    for path, value in changes.items():
        *parents, key = path.split(".")
        section = functools.reduce(lambda found, name: found[name], parents, profile)
        if value is ...:
            del section[key]
        else:
            section[key] = value
    file = tmp_path / "my.yaml"
    file.touch()
    with mock.patch("panolib.study.settings.load_yaml", lambda path: profile):
        return load_study(file, root=tmp_path, train=False)


def realtime_settings(loaded):
    return from_mapping(Realtime, loaded.section("realtime"), where="realtime")


def asked(loaded):
    """Runs that the notebooks ask for; each must be declared."""
    names = {name for runs in loaded.notebooks.values() for name in runs}
    assert names <= set(loaded.runs)
    return names


# --- what notebooks ask for -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "cpu", "paper"])
def test_what_notebooks_ask_for_is_declared_in_every_profile(name, tmp_path):
    loaded = load_study(name, root=tmp_path, train=False)
    assert len(asked(loaded)) > 150
    notebooks = {file.stem for file in (project_root() / "notebooks").glob("[0-9]*.ipynb")}
    assert set(loaded.notebooks) == set(study.NOTEBOOKS) and set(study.NOTEBOOKS) <= notebooks


@pytest.mark.parametrize(("base", "seeds"), [("cpu", [42]), ("smoke", [1]), ("smoke", [7, 3])])
def test_seeds_are_changed_in_one_place(base, seeds, tmp_path):
    loaded = load(tmp_path, {"seeds": seeds}, base=base)
    assert {run.spec.seed for name, run in loaded.runs.items() if name != study.PERFORMANCE} == set(seeds)
    for section in (
        loaded.profile.experiments,
        realtime_settings(loaded),
    ):
        assert section.seeds == tuple(seeds[:1])  # both profiles take the first one
    assert loaded.profile.experiments.consistency_seeds == tuple(seeds)
    assert all(name.rpartition("-s")[2] in map(str, seeds) for name in asked(loaded) - {study.PERFORMANCE})


def test_a_section_takes_all_seeds_unless_it_says_how_many(tmp_path):
    seeds = {"seeds": [4, 5, 6]}
    loaded = load(
        tmp_path, seeds | {"detr.n_seeds": ..., "realtime.n_seeds": 2, "experiments.n_consistency_seeds": 1}
    )
    assert realtime_settings(loaded).seeds == (4, 5)
    assert loaded.profile.experiments.consistency_seeds == (4,)


def test_a_ladder_and_what_is_beside_it_may_say_how_many_seeds_they_take(tmp_path):
    variants = {"instance_variants": {"plain": {"network": {"embedding_dim": 3}}}, "n_variant_seeds": 1}
    variants |= {"n_oracle_seeds": 2}
    changes = {"city.n_seeds": 1, "nuclei.shared": {"n_seeds": 2}, "nuclei.n_seeds": 3}
    changes |= {f"nuclei.{name}": value for name, value in variants.items()}
    loaded = load(tmp_path, {"seeds": [4, 5, 6], **changes})
    seeds = {"city": set(), "nuclei": set(), "shared": set(), "plain": set(), "oracle": set()}
    for name, run in loaded.runs.items():
        if name != study.PERFORMANCE:
            seeds[run.domain].add(run.spec.seed) if run.domain in seeds else None
            seeds["shared"] |= {run.spec.seed} if name.startswith("nuclei-shared") else set()
            seeds["plain"] |= {run.spec.seed} if run.variant == "plain" else set()
            of_oracle = name.startswith("nuclei") and run.rung == "oracle"
            seeds["oracle"] |= {run.spec.seed} if of_oracle else set()
    assert seeds == {"city": {4}, "nuclei": {4, 5, 6}, "shared": {4, 5}, "plain": {4}, "oracle": {4, 5}}
    with pytest.raises(ProfileError, match=r"nuclei.shared: expected n_seeds or seeds, found both"):
        load(tmp_path, {"seeds": [4, 5], "nuclei.shared": {"n_seeds": 1, "seeds": [4]}})
    with pytest.raises(ProfileError, match=r"nuclei: variant_seeds: expected some .*, found \[9\]"):
        load(tmp_path, {"seeds": [4, 5], "nuclei.variant_seeds": [9]})


@pytest.mark.parametrize(
    ("section", "variant"), [("objectness", "filter.none"), ("refinement", "rounds."), ("active", "active.")]
)
def test_a_domain_may_take_other_seeds_than_its_section(tmp_path, section, variant):
    changes = {f"{section}.domains": ["city", "nuclei"], f"{section}.n_seeds": 1}
    taken = {"city": [1, 2, 7]}  # places; there is no eighth
    loaded = load(tmp_path, {"seeds": [4, 5, 6], **changes, f"{section}.domain_seeds": taken})
    found = {(run.domain, run.spec.seed) for run in loaded.runs.values() if run.variant.startswith(variant)}
    assert found == {("city", 5), ("city", 6), ("nuclei", 4)}
    loaded = load(tmp_path, {"seeds": [4], **changes, f"{section}.domain_seeds": taken})
    assert {run.spec.seed for run in loaded.runs.values() if run.variant.startswith(variant)} == {4}
    for wrong in ([], [-1], ["1"], [1, 1], 1, [[1]], None):
        with pytest.raises(ProfileError, match=r"domain_seeds.city: expected places in the list of seeds"):
            load(tmp_path, {"seeds": [4, 5], **changes, f"{section}.domain_seeds": {"city": wrong}})
    with pytest.raises(ProfileError, match=r"domain_seeds: expected some of city, nuclei, found 'mars'"):
        load(tmp_path, {"seeds": [4, 5], **changes, f"{section}.domain_seeds": {"mars": [1]}})


@pytest.mark.parametrize("shorter", [{"semantic_baseline": 1}, None])
def test_seeds_without_an_oracle_have_all_other_rungs(tmp_path, shorter):
    changes = {"city.n_oracle_seeds": 1, "experiments.shorter": shorter, "experiments.seeds": [4]}
    loaded = load(tmp_path, {"seeds": [4, 5], "experiments.n_seeds": ..., **changes})
    rungs = {seed: {(run.branch, run.rung) for name, run in loaded.runs.items() if run.domain == "city"
                    and name.endswith(f"-s{seed}") and not run.variant} for seed in (4, 5)}  # fmt: skip
    oracles = {("semantic", "oracle"), ("instance", "oracle"), ("panoptic", "oracle")}
    assert oracles <= rungs[4] and not oracles & rungs[5]
    ladder = {(branch, rung) for branch in ("semantic", "panoptic") for rung in ("abn", "self_trained")}
    assert ladder <= rungs[5]
    tagged = {loaded.runs[tag.run].rung for tag in loaded.tags if tag.experiment == "semantic ladder"
              and loaded.runs[tag.run].spec.seed == 5}  # fmt: skip
    assert "self_trained" in tagged and "oracle" not in tagged


def test_headline_ladders_of_the_gpu_profile_have_every_seed(tmp_path):
    loaded = load_study("gpu", root=tmp_path, train=False)
    for domain, last in (("city", "teacher"), ("camvid", "teacher"), ("nuclei", "teacher-shared")):
        branch = "semantic" if domain == "camvid" else "panoptic"
        seeds = [run.spec.seed for name, run in loaded.runs.items()
                 if name.startswith(f"{domain}-{branch}-{last}-s")]  # fmt: skip
        assert seeds == list(loaded.seeds) == [0, 1, 2, 3, 4], domain


def test_a_section_and_a_ladder_may_say_which_seeds_they_take(tmp_path):
    changes = {"detr.n_seeds": ..., "detr.seeds": [5], "city.seeds": [5], "nuclei.seeds": [4]}
    loaded = load(tmp_path, {"seeds": [4, 5], **changes})
    runs = [run for name, run in loaded.runs.items() if name != study.PERFORMANCE]
    found = {(run.domain, run.spec.seed) for run in runs}
    assert {("city", 5), ("nuclei", 4)} <= found and ("nuclei", 5) not in found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"city.seeds": [3]}, r"my\.yaml: city: seeds: expected some of the profile's seeds.*, found \[3\]"),
        ({"seeds": []}, r"my\.yaml: seeds: expected a list.* with 1 or more items.*, found \[\]"),
        ({"seeds": ...}, r"my\.yaml: seeds: missing key"),
        ({"seeds": [1, 1]}, r"my\.yaml: seeds: expected .*different items, found \[1, 1\]"),
        ({"seeds": [-1]}, r"my\.yaml: seeds\[0\]: expected >= 0"),
        ({"seeds": 3}, r"my\.yaml: seeds: expected a list.*, found 3 \(int\)"),
        (
            {"detr.seeds": [7], "detr.n_seeds": ...},
            r"my\.yaml: detr: seeds: expected some of the profile's seeds, \[0\], found \[7\]",
        ),
        ({"realtime.n_seeds": 0}, r"my\.yaml: realtime: n_seeds: expected >= 1, found 0"),
        (
            {"experiments.shares.all": [0.5]},
            r"my\.yaml: experiments: shares: all: expected 0\.0 among",
        ),
        (
            {"experiments.algorithms": ["hdbscan"]},
            r"my\.yaml: experiments: algorithms: expected 'mean_shift_plus'",
        ),
        ({"experiments.kernels": [3]}, r"my\.yaml: experiments: kernels: expected 0 among them"),
        ({"experiments.shares.base": [0.0, 0.251, 0.252]}, r"my\.yaml: .*base\.auto\.25.* is declared twice"),
        ({"experiments.sources": {"Syn": "synthia/train"}}, r"my\.yaml: .*Syn.*expected only a-z"),
    ],
)
def test_what_cannot_be_declared_is_one_error(changes, message, tmp_path):
    with pytest.raises(ProfileError, match=f"^{message}"):
        load(tmp_path, changes)


# --- sections that are left out ---------------------------------------------------------------------------


@pytest.mark.parametrize("section", [*OPTIONAL, "city.gap"])
def test_each_optional_section_may_be_left_out(section, tmp_path):
    loaded = load(tmp_path, {section: ...})
    assert list(load(tmp_path, {section: None}).runs) == list(loaded.runs)
    whole, names = set(load(tmp_path, {}).runs), asked(loaded)
    assert set(loaded.runs) < whole
    needed = {"experiments": EXPERIMENTS, "nuclei": ("08_nuclei", "17_your_images", "18_several_views"),
              "realtime": ("09_realtime_adaptation",), "detr": ("10_detr_panoptic",),
              "performance": ("14_performance",), "refinement": ("13_refinement_rounds",),
              "objectness": ("11_objectness",), "active": ("12_active_learning",),
              "method": ("16_our_method",), "views": ("18_several_views",),
              }.get(section, ())  # fmt: skip
    assert set(study.NOTEBOOKS) - set(loaded.notebooks) == set(needed)
    for notebook in needed:
        with pytest.raises(
            MissingSection, match=rf"^my\.yaml: no section '{section}', expected it for {notebook}$"
        ):
            loaded.notebooks[notebook]
    assert not any(name.startswith(f"{section}-") for name in names)


def test_a_profile_of_the_ladder_alone_works(tmp_path):
    loaded = load(tmp_path, dict.fromkeys((*OPTIONAL, "city.gap", "city.cleanup"), ...))
    assert list(loaded.sources) == ["city"] and len(loaded.runs) == 18
    assert list(loaded.notebooks) == ["00_data", "07_panoptic_results", "15_method_in_plain_sight"]
    asked(loaded)


def test_notebooks_say_in_one_line_which_section_is_missing(tmp_path):
    """What their first cells call; a name that only a left-out section declares says so, too."""
    loaded = load(tmp_path, dict.fromkeys(OPTIONAL, ...))
    calls = {
        "experiments": [lambda: loaded.section("experiments")],
        "realtime": [lambda: realtime_settings(loaded)],
    }
    for section, functions in calls.items():
        for function in functions:
            with pytest.raises(
                MissingSection, match=f"^profile my: expected section '{section}', which is left out$"
            ):
                function()
    for experiment in ("E1", "E2", "E3"):
        missing = rf"'{experiment}': .* no run at all; .*leaves out: .*experiments"
        with pytest.raises(LookupError, match=missing):
            rows.rows(loaded, experiment)
    with pytest.raises(
        LookupError, match=r"no run 'performance' in the study of profile my.*performance"
    ):
        loaded.get(study.PERFORMANCE)
    for notebook in ("05_guided_masks", "06_instance_results"):
        text = (project_root() / "notebooks" / f"{notebook}.ipynb").read_text()
        assert "profile.experiments" not in text and "study.section(" in text


@pytest.mark.parametrize(
    "section", ["description", "compute", "city", "city.self_training", "city.data", "city.panoptic"]
)
def test_each_other_section_is_one_clear_error(section, tmp_path):
    where = r"^my\.yaml: " + section.replace(".", ": ") + ": "
    with pytest.raises(ProfileError, match=where + "missing key, expected"):
        load(tmp_path, {section: ...})
    with pytest.raises(ProfileError, match=where + "expected .*found None"):
        load(tmp_path, {section: None})


# --- words, numbers and names -----------------------------------------------------------------------------

NETWORK = {
    "version": "v2",
    "output_stride": 8,
    "rates": [1],
    "encoder": {"name": "test_efficientnet", "weights": None},
}
RESNET = {"name": "resnet50", "weights": None}
BAD = [  # key, value; the message names the last part of the key, or its section where it is another one
    ("compute.accelerator", "cdua"), ("compute.precision", "bf16"), ("compute.loader_workers", -1),
    ("city.label_set", "cityscape"), ("city.label_set", "nuclei"), ("city.semantic_source", "mixx/train"),
    ("city.instance_source", "synthia/trian"), ("city.instance_selection", "synthia"),
    ("city.target", "cityscape"), ("city.semantic_source", "mix/train:unlabeled"),
    ("city.data.mix_requires", ["lorry"]), ("city.data.n_val_synthia", 60),
    ("city.data.train_size", [0, 64]), ("city.data.embedded.n_train", 0),
    ("city.semantic_baseline.network", NETWORK | {"version": "v4"}),
    ("city.semantic_baseline.network", NETWORK | {"encoder": RESNET | {"name": "resnet3"}}),
    ("city.semantic_baseline.network", NETWORK | {"rates": []}),
    ("city.semantic_baseline.network", NETWORK | {"encoder": RESNET | {"weights": "IMAGENETK"}}),
    ("city.semantic_baseline.network", NETWORK | {"encoder": RESNET | {"weights": "~/no/such/file.pth"}}),
    ("city.semantic_baseline.network", NETWORK | {"alignment": "centre"}),
    ("city.semantic_baseline.network", NETWORK | {"geometry": "caffe"}),
    ("city.self_training_start", "source_only"), ("city.instance_self_training.noise_on", "both"),
    ("city.batch_norm.target_batch_size", 0),
    ("city.semantic_baseline.optimiser.name", "adm"),
    ("city.semantic_baseline.optimiser.schedule", "cosin"), ("city.semantic_baseline.optimiser.lr", 0.0),
    ("city.semantic_baseline.optimiser.momentum", 1.5),
    ("city.semantic_baseline.augmentation.scale_of", "windw"),
    ("city.semantic_baseline.augmentation.scale", [1.0, 0.5]),
    ("city.semantic_baseline.augmentation.hflip", 1.5), ("city.semantic_baseline.augmentation.height", 0),
    ("city.semantic_baseline.augmentation.blur", [-0.1, 1.0]), ("city.semantic_baseline.iterations", -5),
    ("city.semantic_baseline.batch_size", 0), ("city.batch_norm.n_batches", 0),
    ("city.batch_norm.momentum", 2.0), ("city.self_training.batch_norm", "froze"),
    ("city.self_training.ema_decay", 1.01), ("city.self_training.n_views", 0),
    ("city.self_training.zoom", [1.0, 0.5]), ("city.self_training.zoom", [0.0, 0.5]),
    ("city.self_training.target_weight", -1.0), ("city.self_training.minimum_threshold", 1.2),
    ("city.self_training.ema_interval", 0), ("city.self_training.painted", "tru"),
    ("city.instance_baseline.network.decoder_channels", [8]),
    ("city.instance_baseline.network.output_stride", 3), ("city.instance_baseline.bandwidths", []),
    ("city.instance_baseline.bandwidths", [0.0]), ("city.instance_baseline.weights.pull", -1.0),
    ("city.instance_baseline.margins.delta_var", -0.5),
    ("city.instance_self_training.algorithm", "meanshift"),
    ("city.instance_self_training.momentum_mode", "emma"),
    ("city.instance_self_training.batch_norm", "both"), ("city.instance_self_training.source_share", 1.1),
    ("city.instance_self_training.min_stability", 60), ("city.panoptic.merge_rules", ["voi"]),
    ("city.panoptic.merge_rules", []), ("city.panoptic.min_size", -1),
    ("city.gap.target_style", "cityscape"), ("nuclei.semantic_source", "nuclei_scene/train"),
    ("nuclei.target", "nucleus"), ("nuclei.data.n_train", 0), ("nuclei.self_training.batch_norm", "targt"),
    ("nuclei.gap", {"n_images": 3}), ("camvid.size", [96, -128]), ("experiments.sources.syn", "synthia/al"),
    ("experiments.networks.v3.version", "v33"), ("experiments.algorithms", ["mean_shift_plus", "kmeans"]),
    ("experiments.shares.base", [0.0, 25]), ("experiments.shares.iccm", [0.0]),
    ("experiments.painted_share", 30),
    ("experiments.crop_scale", [0.5, 0.25]), ("experiments.monitor_interval", 0),
    ("experiments.consistency_weights", [-1.0]), ("experiments.clustering_cost.heights", [8]),
    ("detr.network.output_stride", 4), ("detr.network.n_points", 0), ("detr.elsewhere", ["gta/val"]),
    ("detr.rule.thresholds", [85, 50]), ("detr.iterations", 0), ("detr.colours.probability", 2.0),
    ("detr.curve_sizes", [12, 12]), ("performance.step.source_style", "sinthia"),
    ("performance.domain", "citty"),
    ("performance.threads", []), ("performance.step_sizes", [[0, 64]]), ("performance.repeats", 0),
    ("realtime.rule", "sett"), ("realtime.threshold", 90), ("realtime.network.version", "bisnet"),
    ("realtime.adversary.width", 0), ("realtime.adaptation.batch_norm", "bth"),
    ("realtime.weights", [0.1, 0.1]), ("realtime.meta.epochs", 0),
    ("realtime.speed.compiled", ["BiSeNet-99"]), ("realtime.speed.limit_s", -1.0),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), BAD, ids=[f"{key}={str(value)[-20:]}" for key, value in BAD])
def test_a_wrong_word_number_or_name_fails_at_loading(key, value, tmp_path):
    with pytest.raises(ProfileError, match=r"^my\.yaml: .*(expected|unknown)") as error:
        load(tmp_path, {key: value})
    message = str(error.value)
    assert "\n" not in message
    parts = key.split(".")
    assert parts[-1] in message or parts[0] in message


def test_words_are_those_that_the_libraries_know():
    """Fabric's precisions and accelerators; the clustering registry; the names of torchvision's weights."""
    from typing import get_args, get_type_hints

    from lightning_fabric import connector
    from lightning_fabric.accelerators import ACCELERATOR_REGISTRY

    from panolib.clustering.algorithms import Algorithm
    from panolib.training.setup import Compute

    types = get_type_hints(Compute)
    assert set(get_args(types["precision"])) == set(get_args(connector._PRECISION_INPUT_STR))
    known = set(ACCELERATOR_REGISTRY.available_accelerators()) | {"auto", "gpu"}
    assert set(get_args(types["accelerator"])) <= known
    assert set(get_args(Algorithm)) == {*ALGORITHMS, *IMAGE_ALGORITHMS, "connected_components"}
    check_encoder_weights("resnet101", "IMAGENET1K_V1"), check_encoder_weights("resnet18", None)
    tiny, unknown = ("test_efficientnet", "IMAGENET1K_V1"), ("resnet50", "IMAGENETK")
    for name, weights in (tiny, unknown, ("resnet18", "no/such/file.pth")):
        with pytest.raises(ValueError, match=f"is '{weights}'"):
            check_encoder_weights(name, weights)


def test_paths_of_a_profile_expand(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "disk"))
    monkeypatch.setenv("PANOLIB_CAMVID_ROOT", "$DATA/streets")
    changes = {
        "city.data.synthia": "~/synthia",
        "city.data.gta5": "$DATA/gta5",
        "nuclei.data.root": "${DATA}/nuclei",
    }
    sources = load(tmp_path, changes).sources
    assert sources["city"].folders["synthia"] == tmp_path / "home" / "synthia"
    assert sources["city"].folders["gta5"] == tmp_path / "disk" / "gta5"
    assert sources["nuclei"].root == tmp_path / "disk" / "nuclei"
    assert sources["camvid"].root == tmp_path / "disk" / "streets"
    with pytest.raises(ProfileError, match=r"'\$NOT_SET_AT_ALL/x': variable \$NOT_SET_AT_ALL is not set"):
        load(tmp_path, {"city.data.gta5": "$NOT_SET_AT_ALL/x"})


# --- a profile is a name or a path ------------------------------------------------------------------------


def test_a_profile_may_be_a_path(tmp_path, monkeypatch):
    loaded = load(tmp_path, {})
    file = tmp_path / "my.yaml"
    file.write_text((PROFILES / "smoke.yaml").read_text())
    assert (loaded.profile_name, loaded.profile_argument) == ("my", str(file))
    assert loaded.results == tmp_path / "results" / "my" and loaded.store.profile == str(file)
    assert load_study(str(file), root=tmp_path).runs.keys() == loaded.runs.keys()
    monkeypatch.chdir(project_root() / "notebooks")  # where notebooks run
    assert load_study("notebooks/profiles/smoke.yaml", root=tmp_path).profile_argument == "smoke"


def test_unknown_profiles_say_what_there_is(tmp_path):
    with pytest.raises(
        ProfileError, match=r"^profile 'cpuu': expected one of cpu, gpu, gpu_resnet50, .*, or the path"
    ):
        load_study("cpuu", root=tmp_path)
    with pytest.raises(
        ProfileError, match=r"^profile .*none\.yaml: expected a YAML file, found no such file"
    ):
        load_study(tmp_path / "none.yaml", root=tmp_path)


def test_a_path_never_takes_the_results_of_a_profile_of_the_project(tmp_path):
    file = tmp_path / "cpu.yaml"
    file.write_text((PROFILES / "cpu.yaml").read_text())
    assert load_study(file, root=tmp_path).results == tmp_path / "results" / "cpu"
    with pytest.raises(
        ProfileError, match=r"cpu\.yaml: its results would be those of .*expected another file name"
    ):
        load_study(file)


# --- a run says its domain --------------------------------------------------------------------------------


def test_a_run_says_whose_data_it_reads(tmp_path):
    from dataclasses import replace

    from panolib.study.kinds import open_data

    loaded = load(tmp_path, {})
    assert {run.domain for run in loaded.runs.values()} == {"city", "camvid", "nuclei"}
    run = replace(loaded.runs["nuclei-semantic-oracle-s0"], name="another-name")
    assert run.key == loaded.runs["nuclei-semantic-oracle-s0"].key
    opened = {
        domain: type(domain, (), {"open": lambda self, name: (type(self).__name__, name)})()
        for domain in loaded.sources
    }
    job = SimpleNamespace(run=run, images={})
    assert open_data(opened, job, "nuclei/val") == ("nuclei", "nuclei/val")
    assert job.images == {"nuclei/val": 2}
    package = project_root() / "panolib"
    parsed = [file.name for file in package.rglob("*.py") if 'name.split("-")' in file.read_text()]
    assert parsed == []


# --- writers with several processes -----------------------------------------------------------------------

WRITERS = {
    "city": "from panolib.data.render.city import *\nwrite_city({folder!r}, 'synthia', split='all', {sizes})",
    "nuclei": "from panolib.data.render.nuclei_scenes import *\n"
    "write_nuclei({folder!r}, split='train', {sizes})",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_script_without_a_main_guard_gets_one_clear_error(writer, tmp_path):
    sizes = "n_images=4, height=64, width=64, seed=1, n_workers=2, progress=False"
    script = tmp_path / "script.py"
    script.write_text(WRITERS[writer].format(folder=str(tmp_path / "data"), sizes=sizes) + "\n")
    environment = {**os.environ, "PYTHONPATH": str(project_root())}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: 2 worker processes: one ended before")
    assert "if __name__ == '__main__'" in done.stderr and done.stderr.count("Traceback") == 1


@pytest.mark.parametrize("main", ["[city]", "{a: 1}", "5"])
def test_the_main_domain_is_a_name(main, tmp_path):
    (tmp_path / "odd.yaml").write_text(f"extends: smoke\nmain: {main}\n")
    with pytest.raises(ProfileError, match=r"odd\.yaml: (main: expected the name|5: missing key)"):
        read_profile(tmp_path / "odd.yaml")
