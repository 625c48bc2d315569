"""How the runs of the peer are executed: supervised training, joint mean teacher, scores on the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import nn

from panolib.config import Natural, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.related.mean_teacher.library import build_peer
from panolib.related.mean_teacher.training import train_mean_teacher, train_peer
from panolib.related.mean_teacher.watershed import PACKAGE, choose_watershed, score_peer
from panolib.study.kinds import Sources, finish, open_data, selected
from panolib.study.parents import parent_spec
from panolib.training.run_specs import RunSpec
from panolib.training.setup import launch
from panolib.training.specs import StudentOrTeacher


@spec(kw_only=True)
class PeerScoresSpec(RunSpec):
    """Scores of one trained network on labelled images; nothing is trained."""

    validation: str
    scored: StudentOrTeacher  # of a mean teacher; the only network of another run
    watershed: Literal["source", "package"]  # settings: chosen on the source, or torch-em's defaults
    n_samples: Natural


# raised with what a kind computes, see panolib/study/kinds.py
VERSIONS = {"peer_baseline": 1, "peer_mean_teacher": 1, "peer_scores": 1}


def peer_baseline(sources: Sources, run: Run, job: Job) -> dict:
    """Supervised network; metrics: {"student": the watershed's settings that suit it on the source}."""
    source, selection = (open_data(sources, job, name) for name in (run.spec.source, run.spec.selection))
    model = finish(job, train_peer(run.spec, job, source, selection, _start(job)))
    return {"student": _choice(sources, job, model)}


def peer_mean_teacher(sources: Sources, run: Run, job: Job) -> dict:
    """Joint mean teacher; metrics as above, of both networks."""
    names = (run.spec.source, run.spec.selection, run.spec.target)
    data = (open_data(sources, job, name) for name in names)
    student, teacher = train_mean_teacher(run.spec, job, *data, _start(job))
    finish(job, student, teacher)
    return {"student": _choice(sources, job, student), "teacher": _choice(sources, job, teacher)}


def peer_scores(sources: Sources, run: Run, job: Job) -> dict:
    """Every score of the parent's network, in the form of `study.kinds.classical`."""
    spec, state = run.spec, job.parent("peer")
    network = spec.scored if spec.scored in job.parent_record("peer").metrics else "student"
    setting = PACKAGE
    if spec.watershed == "source":
        setting = job.parent_record("peer").metrics[network]["chosen"]
    model = build_peer(parent_spec(job, "peer").network)
    model.load_state_dict(state["model" if network == "student" else network])
    metrics = score_peer(
        launch(spec.compute).to_device(model),
        open_data(sources, job, spec.validation),
        LABEL_SETS[spec.label_set],
        setting,
        n_samples=spec.n_samples,
        save_sample=job.save_sample,
        save_counts=job.save_counts,
        label=f"{run.name}: score",
    )
    job.finish({})
    return {"chosen": setting, **metrics}


def _start(job: Job) -> Mapping | None:
    """Weights of the parent "start"; None without one."""
    return job.parent("start")["model"] if "start" in dict(job.run.parents) else None


def _choice(sources: Sources, job: Job, model: nn.Module) -> dict:
    """Settings of the watershed, chosen on labelled images of the source."""
    label_set, label = LABEL_SETS[job.spec.label_set], f"{job.run.name}: watershed"
    return choose_watershed(model, selected(sources, job), label_set, job.spec.watershed, label=label)
