"""A tiny run of every kind on a tiny rendered city, and what it computes, with and without its last bits."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import yaml

from panolib.bench import instance_step as bench_instance_step
from panolib.bench import operations as bench
from panolib.bench import step as bench_step
from panolib.config import spec
from panolib.lab.records import Record
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.load import load
from panolib.profiles import load_yaml, project_root
from panolib.study import study
from panolib.study.run_specs import TransferSpec

SGD = {"name": "sgd", "weight_decay": 0.0005, "momentum": 0.9, "head_lr_scale": 1.0, "warmup": 0}
SGD |= {"schedule": "constant", "lr": 0.02}  # Adam would move weights with no gradient by its rounding
PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "opencv-python-headless", "transformers")
SWITCHES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
N_PROJECTIONS = 4
ITERATIONS = 3


def tiny_city(root: Path) -> study.Study:
    """`tiny_study` with the images of its city."""
    loaded = tiny_study(root)
    loaded.sources["city"].prepare(progress=False)
    return loaded


def tiny_study(root: Path) -> study.Study:
    """The smoke profile with a handful of small images, a few iterations and plain descent."""
    profiles = project_root(Path(__file__).parent) / "notebooks" / "profiles"
    profile = load_yaml(profiles / "smoke.yaml")
    city, detr, realtime = profile["city"], profile["detr"], profile["realtime"]
    city["data"]["embedded"] |= {"n_synthia": 8, "n_gta5": 6, "n_train": 4, "n_val": 2, "height": 40}
    city["data"]["embedded"] |= {"width": 80}
    city["data"] |= {"n_val_synthia": 2, "n_val_gta5": 1, "mix_requires": ["car"]}
    city["instance_baseline"] |= {"min_area": 2, "bandwidths": [0.75, 1.0], "merge_distances": [1.0]}
    city["instance_self_training"]["min_stability"] = 0.2
    city["panoptic"]["min_size"] = 2
    city["shared"] = {"network": {"instance": {"coordinates": "embedding", "coordinate_length": 4.0}}}
    city["gap"] |= {"n_images": 1, "height": 40, "width": 80}
    for section in ("semantic_baseline", "self_training", "instance_baseline", "instance_self_training"):
        rate = {"lr": 0.001} if section.startswith("instance") else {}
        city[section] |= {"iterations": ITERATIONS, "optimiser": SGD | rate}
    city["score_teachers"] = True
    city["self_training"]["minimum_threshold"] = 0.01  # untrained networks are sure of nothing
    for section in ("batch_norm", "instance_batch_norm"):
        city[section]["n_batches"] = 2
    for section in ("semantic_baseline", "instance_baseline"):
        city[section]["augmentation"] |= {"height": 32, "width": 64}
    profile["experiments"] |= {"monitor_interval": ITERATIONS, "monitor_images": 1}
    del profile["experiments"]["shorter"]
    profile["experiments"]["clustering_cost"] |= {"heights": [8, 12], "n_instances": [2]}
    detr |= {"iterations": ITERATIONS, "n_samples": 1, "cost_repeats": 1, "elsewhere": [], "clip": 10.0}
    detr["optimiser"] = SGD | {"lr": 0.01}
    realtime["adaptation"] |= {"iterations": ITERATIONS, "optimiser": SGD}
    realtime["adaptation"] |= {"batch_size": 4, "n_target": 4}  # more than the norms of 1 x 1 maps need
    realtime["speed"] |= {"repeats": 1, "limit_s": 0.0, "height": 32, "width": 64}
    del realtime["speed"]["networks"]["DeepLabV2-18"]
    nuclei = profile["nuclei"]
    nuclei["data"]["embedded"] |= {"n_train": 1, "n_val": 2, "height": 48, "width": 64}
    nuclei["classical"] = {"smoothings": [0.0, 1.0], "sigmas": [1.0], "min_distances": [2, 4]}
    nuclei["classical"]["min_sizes"] = [4]
    path = root / "tiny.yaml"
    path.write_text(yaml.safe_dump(profile))
    return load(path, root=root)


def tiny_runs(loaded: study.Study) -> dict[str, Run]:
    """{kind: run}. Each starts from networks of no iteration: what one kind computes moves no other one."""
    names = {
        "semantic_baseline": "semantic-source_only-s0",
        "semantic_batch_norm": "semantic-abn-mix.v3plus-s0",  # it has dropout
        "self_training": "semantic-self_trained-s0",
        "instance_baseline": "instance-source_only-s0",
        "instance_batch_norm": "instance-adabn-s0",
        "instance_self_training": "instance-self_trained-masks.100-s0",  # true masks have things in them
        "shared_baseline": "shared-source_only-s0",
        "shared_batch_norm": "shared-adabn-s0",
        "shared_self_training": "shared-self_trained-s0",
        "panoptic": "panoptic-self_trained-s0",
        "cleanup": "cleanup-s0",
        "gap": "gap-source_only-s0",
        "threat": "threat-masks.100-s0",
        "semantic_scores": "semantic-teacher-s0",
        "objectness": "objectness-s0",
        "objectness_ranking": "objectness-self_trained-s0",
        "active_candidates": "candidates-active.disagreement.2.1-s0",
        "active_answers": "answers-active.disagreement.2.1-s0",
        "active_labels": "answers-active.full_labels.2.1-s0",
        "clustering_cost": "clustering_cost-s0",
        "adversarial_adaptation": "semantic-ssl1-bisenet-s0",
        "meta_labels": "semantic-mpl_old-bisenet-s0",
        "label_quality": "labels-bisenet-s0",
        "gallery": "gallery-bisenet-s0",
        "latency": "latency-s0",
        "transfer": "semantic-source_only-bisenet-s0",
        "detr": "detr-plain-s0",
        "detr_scores": "detr_scores-plain-s0",
        "detr_cost": "detr_cost-s0",
    }
    runs = {kind: _from_untrained(loaded.runs[f"city-{name}"]) for kind, name in names.items()}
    runs["performance"] = _from_untrained(loaded.runs[study.PERFORMANCE])
    otsu = loaded.runs["nuclei-panoptic-otsu_watershed-s0"]  # scored on rendered nuclei, which are everywhere
    runs["classical"] = replace(
        otsu, data=otsu.data[1:], spec=replace(otsu.spec, validation=otsu.spec.selection)
    )
    start = _untrained(runs["transfer"])  # of CamVid only, which is not everywhere
    spec = TransferSpec(**{name: getattr(start.spec, name) for name in TransferSpec.__dataclass_fields__})
    runs["transfer"] = replace(
        start, name="city-transfer-s0", kind="transfer", spec=spec, parents=(("start", start),)
    )
    return runs


def _from_untrained(run: Run) -> Run:
    """A run whose parents are untrained."""
    return replace(run, parents=tuple((role, _untrained(parent)) for role, parent in run.parents))


def _untrained(run: Run) -> Run:
    """The baseline that a run goes back to, of no iteration."""
    if run.kind in ("objectness", "active_candidates"):  # what they hand on is no network
        return _from_untrained(run)
    while start := {"start", "labels"} & dict(run.parents).keys():
        run = dict(run.parents)[start.pop()]
    run = _from_untrained(run)
    cls = type(run.spec)
    untrained = spec(type(cls.__name__, (cls,), {"__annotations__": {"iterations": int}}))  # no profile may
    return replace(
        run, name=f"{run.name}-untrained", spec=untrained(**{**vars(run.spec), "iterations": 0})
    )


def train(store: Store, run: Run, *, anew: bool = False) -> Record:
    """The record of a run, without what performance runs measure for minutes."""
    none = lambda *args, **options: []  # noqa: E731
    timed = dict.fromkeys(("operation_rows", "scaling_rows", "rendering_rows", "start_rows"), none)
    steps = dict.fromkeys(("step_rows", "step_scaling_rows", "step_overhead"), none)
    embedding_step = mock.patch.object(bench_instance_step, "instance_step_rows", none)
    with mock.patch.multiple(bench, **timed), mock.patch.multiple(bench_step, **steps), embedding_step:
        return store.get(run, anew=anew)


def results(store: Store, record: Record) -> dict[str, np.ndarray]:
    """Vectors of all that a run computes but times and memory: weights, curves, metrics, pictures."""
    found = {}
    state = store.final_state(record.run).get("model", {})
    weights = [value.double().flatten() for _, value in sorted(state.items()) if value.is_floating_point()]
    if weights:
        found["weights"] = torch.cat(weights).numpy()
    for name, column in record.curves.items():
        if not name.endswith("_s"):
            found[f"curve {name}"] = column.to_numpy(np.float64)
    for name, value in _timeless(record.run.kind, record.metrics).items():
        found[f"metric {name}"] = np.array(list(_leaves(value)), np.float64)
    for name, file in record.samples.items():
        found[f"picture {name}"] = cv2.imread(str(file)).astype(np.float64).flatten()
    return found


def digest(vectors: dict[str, np.ndarray]) -> str:
    """sha256 (hex) of every bit."""
    hashed = hashlib.sha256()
    for name, values in sorted(vectors.items()):
        hashed.update(name.encode() + values.tobytes())
    return hashed.hexdigest()


def summary(vectors: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """{name: [length, finite values, norm, projections on fixed vectors of random signs]}: a change of any
    value moves the projections, rounding moves them by its own size."""
    found = {}
    for name, values in sorted(vectors.items()):
        finite = np.isfinite(values)
        values = np.where(finite, values, 0.0)
        signs = np.random.default_rng(len(values)).choice((-1.0, 1.0), (N_PROJECTIONS, len(values)))
        numbers = [np.linalg.norm(values), *(signs @ values)]
        found[name] = [len(values), int(finite.sum()), *(float(f"{number:.9g}") for number in numbers)]
    return found


def machine_class() -> str:
    """Machines that are to compute the same bits: processor, its caches, switches and versions."""
    wanted = ("vendor_id", "cpu family", "model", "stepping", "flags")
    facts = []
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        facts = [line for line in lines if line.split("\t")[0] in wanted]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    facts += [file.read_text() for file in caches]
    facts = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    capability = torch.backends.cpu.get_cpu_capability()
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ]
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES]
    return ", ".join([platform.machine(), capability, facts, *switches, *versions])


def _timeless(kind: str, metrics: dict) -> dict:
    """Metrics without times, memory and what depends on the kernels that a processor gets."""
    keep = {
        "clustering_cost": lambda: {
            row["algorithm"]: [row["pixels"], row["instances"]] for row in metrics["rows"]
        },
        "performance": lambda: {
            row["algorithm"]: [row["pooled threat score"], row["tp"], row["fp"], row["fn"]]
            for row in metrics["real_embeddings"]
        },
        "latency": lambda: {
            f"{row['network']} {row['way']}": [row["parameters"], row["multiply_adds"]]
            for row in metrics["rows"]
        },
        "detr_cost": lambda: {
            name: [system["parameters"], system["scores"]] for name, system in metrics["systems"].items()
        },
    }
    return keep.get(kind, lambda: metrics)()


def _leaves(value) -> Iterator[float]:
    """Numbers of nested metrics in order; words by their hash."""
    if isinstance(value, dict):
        for name in sorted(value):
            yield from _leaves(value[name])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield float(int(hashlib.sha256(value.encode()).hexdigest()[:6], 16))
    else:
        yield float(value)
