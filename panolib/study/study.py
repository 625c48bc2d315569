"""Every run of the study as data: the whole experimental grid on one page.

A notebook calls `load(profile)`, asks for runs by name and gets their records: replayed where they
were recorded, trained where they were not. `grid.py` declares the ladder, `experiments.py` the thesis's
experiments beside it, `refinement.py` rounds that go on from it, `method.py` later ideas in its
self-training; `kinds.py` says how a run of each kind is executed.

The ladder of rungs, the same in both domains (city, nuclei):

=============  ====================================  ===========================================
rung           semantic branch                       instance branch
=============  ====================================  ===========================================
source_only    cross-entropy on the source           embedding losses on the source
abn            source_only + mixed batch statistics  the same
adabn          source_only + target statistics       the same
control        adabn + source-only continuation      adabn + source-only continuation
self_trained   adabn + SAC self-training             adabn + self-training on clustered instances
oracle         cross-entropy on the target           embedding losses on the target
=============  ====================================  ===========================================

A profile may let control and self-training start from abn (`self_training_start`), give oracles the
iterations of baseline and self-training together (`equal_budgets`), and score the momentum networks of
self-training as a rung of their own, "teacher" (`score_teachers`): the networks to keep, as in DAFormer and
EDAPS. For nuclei it may add controls without embeddings (`classical`): Otsu's threshold with connected
components and with watershed, and the watershed of our own masks.

An embedding baseline also chooses the clustering settings of its ladder, on images of its own domain and
inside the masks that the semantic baseline of the same rung predicts there.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panolib.lab.records import DamagedRecord, Record
from panolib.lab.run import Run
from panolib.lab.store import Store
from panolib.labels import LABEL_SETS
from panolib.study.settings import MissingSection, Profile

RUNGS = ("source_only", "abn", "adabn", "control", "self_trained", "oracle")
BATCH_NORM_RUNGS = ("source_only", "abn", "adabn")
GAP_RUNGS = ("source_only", "abn")
# where a profile asks for them:
TEACHER = "teacher"  # rung beside self_trained, which is its student
WITH_TEACHER = (*RUNGS[:-1], TEACHER, RUNGS[-1])  # in the order of tables
OTSU_WATERSHED = "otsu_watershed"
OTSU_RUNGS = {"otsu_components": "connected_components", OTSU_WATERSHED: "watershed"}  # without any network
MASK_WATERSHED = "mask_watershed"  # in the masks of the last network; variant "source_only": of the first


# notebook -> sections of the profile without which it has nothing to say, experiments whose runs it reads
NOTEBOOKS = {
    "00_data": ((), ("gap",)),
    "01_dataset_mixing": (("experiments",), ("semantic ladder", "camvid ladder", "E1", "E11", "E12")),
    "02_clustering_comparison": (("experiments",), ("E2",)),
    "03_category_models": (("experiments",), ("E3",)),
    "04_forgetting": (("experiments",), ("E3", "E4")),
    "05_guided_masks": (("experiments",), ("E5", "E6")),
    "06_instance_results": (("experiments",), ("E3", "E7", "E9")),
    "07_panoptic_results": ((), ("city ladder", "E10", "city shared")),
    "08_nuclei": (("nuclei",), ("nuclei ladder", "nuclei embeddings", "nuclei cleanup", "peers")),
    "09_realtime_adaptation": (("realtime",), ("realtime", "speed")),
    "10_detr_panoptic": (("detr",), ("detr",)),
    "11_objectness": (("objectness",), ("objectness",)),
    "12_active_learning": (("active",), ("active", "active oracle")),
    "13_refinement_rounds": (("refinement",), ("rounds",)),
    "14_performance": (("performance",), ("performance",)),
    "15_method_in_plain_sight": ((), ()),
    "16_our_method": (("method",), ("method",)),
    "17_your_images": (("nuclei",), ()),
    "18_several_views": (("views", "nuclei"), ("views", "views choice")),
}


@dataclass(frozen=True)
class Tag:
    """That a run belongs to an experiment, and where in it. No part of the run's key."""

    experiment: str
    run: str
    values: Mapping[str, str | float]


class Notebooks(dict[str, tuple[str, ...]]):
    """{notebook: runs that it asks for}; MissingSection for one whose section the profile leaves out."""

    def __init__(self, tags: Sequence[Tag], profile: Profile, where: str):
        self.left_out = {}
        for name, (sections, experiments) in NOTEBOOKS.items():
            missing = [section for section in sections if section in profile.left_out()]
            if missing:
                self.left_out[name] = f"{where}: no section {missing[0]!r}, expected it for {name}"
            else:
                runs = (tag.run for wanted in experiments for tag in tags if tag.experiment == wanted)
                self[name] = tuple(dict.fromkeys(runs))

    def __missing__(self, name: str) -> tuple[str, ...]:
        if name in self.left_out:
            raise MissingSection(self.left_out[name])
        raise KeyError(name)


@dataclass(frozen=True)
class Study:
    """One profile: its runs, its data, what is recorded, and where the results go."""

    profile_name: str  # folder of the results
    profile_argument: str  # what `load` and --profile take for it from every folder: its name, or a path
    profile: Profile
    runs: Mapping[str, Run]
    tags: tuple[Tag, ...]  # which runs belong to which experiment
    notebooks: Notebooks
    sources: Mapping[str, object]  # domain, of every ladder and further target -> its data sets
    store: Store
    results: Path
    figures: Path

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.profile.seeds

    def get(self, name: str) -> Record:
        """The record of a run, trained first if it has to be. LookupError, with near names, for none."""
        if name not in self.runs:
            near = ", ".join(difflib.get_close_matches(name, self.runs)) or "none"
            raise LookupError(
                f"no run {name!r} in the study of profile {self.profile_name}; near names: {near}; sections "
                f"that the profile leaves out: {', '.join(self.profile.left_out()) or 'none'}"
            )
        return self.store.get(self.runs[name])

    def section(self, name: str) -> Any:
        """Settings of a section that may be left out. MissingSection where it is."""
        settings = getattr(self.profile, name)
        if settings is None:
            raise MissingSection(f"profile {self.profile_name}: expected section {name!r}, which is left out")
        return settings

    def prepare_data(
        self, *, n_workers: int = 1, progress: bool = True, domains: Iterable[str] | None = None
    ) -> None:
        """Render the embedded data sets that are not on disk yet; of some domains only, or of all."""
        for domain in self.sources if domains is None else domains:
            self.sources[domain].prepare(n_workers=n_workers, progress=progress)

    def headline(self, record: Record) -> str:
        """The one number of a run that a list of runs shows."""
        metrics = record.metrics
        own = getattr(record.run.spec, "label_set", "")  # a user's, whose classes are scored under its name
        for name in ("pq_19", "pq_2", f"pq_{own}", "miou_19", "miou_2", "miou_11", f"miou_{own}"):
            if metrics.get(name) is None:
                continue
            if not isinstance(metrics[name], int | float):
                file = self.store.folder(record.run) / "metrics.json"
                raise DamagedRecord(f"{file}: {name}: expected a number, found {metrics[name]!r}")
            score = f"{name} {100 * metrics[name]:.1f} %"
            return f"{score}, objects 0 %" if _finds_no_object(metrics, name, own) else score
        return ""


def _finds_no_object(metrics: Mapping[str, Any], name: str, label_set: str) -> bool:
    """Whether a mean over classes is of the background alone: no class of objects has a score above 0."""
    by_class = metrics.get("iou" if name.startswith("miou") else "pq")
    if label_set not in LABEL_SETS or not isinstance(by_class, Mapping):
        return False
    things = [by_class.get(thing) for thing in LABEL_SETS[label_set].things]
    known = [score for score in things if score is not None and score == score]  # nan: none in the labels
    return bool(known) and not any(known)


PERFORMANCE = "performance"


def run_name(domain: str, kind: str, rung: str, seed: int, variant: str = "") -> str:
    """Folder name of a run: "city-semantic-self_trained-s0", "city-semantic-self_trained-mix.v3-s0"."""
    return "-".join(part for part in (domain, kind, rung, variant, f"s{seed}") if part)


def is_available(study: Study, name: str) -> bool:
    """Whether a run is recorded, or the data of its domain is on this machine so that it can be trained."""
    if name not in study.runs:  # of a section that the profile leaves out
        return False
    run = study.runs[name]
    return study.store.load(run) is not None or study.sources[run.domain].available()
