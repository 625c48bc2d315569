"""How the runs of the peer are executed: supervised training, joint mean teacher, scores on the target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from torch import nn

from panolib.config import Natural, Seed, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.related.mean_teacher.library import build_peer
from panolib.related.mean_teacher.training import train_mean_teacher, train_peer
from panolib.related.mean_teacher.watershed import choose_watershed, score_peer
from panolib.study.kinds import Sources, finish, open_data, parent_spec
from panolib.training.setup import launch
from panolib.training.specs import Compute


@spec
class PeerScoresSpec:
    """Scores of one trained network on labelled images; nothing is trained."""

    label_set: str
    validation: str
    n_samples: Natural
    compute: Compute
    seed: Seed


# raised with what a kind computes, see panolib/study/kinds.py
VERSIONS = {"peer_baseline": 1, "peer_mean_teacher": 1, "peer_scores": 1}


def make_kinds(sources: Sources) -> dict[str, Callable[[Run, Job], dict]]:
    """{kind: function(run, job) -> metrics}, all reading from `sources`."""
    functions = (peer_baseline, peer_mean_teacher, peer_scores)
    return {function.__name__: functools.partial(function, sources) for function in functions}


def peer_baseline(sources: Sources, run: Run, job: Job) -> dict:
    """Supervised network; metrics: {"model": the settings of the watershed that suit it on the source}."""
    source, selection = (open_data(sources, run, name) for name in (run.spec.source, run.spec.selection))
    model = finish(job, train_peer(run.spec, job, source, selection, _start(job)))
    return {"model": _choice(sources, run, model)}


def peer_mean_teacher(sources: Sources, run: Run, job: Job) -> dict:
    """Joint mean teacher. The network that is kept is the teacher, as its users do; also the "student"."""
    spec = run.spec
    source, selection, target = (
        open_data(sources, run, name) for name in (spec.source, spec.selection, spec.target)
    )
    student, teacher = train_mean_teacher(spec, job, source, selection, target, _start(job))
    job.finish({"model": teacher.state_dict(), "student": student.state_dict()})
    return {name: _choice(sources, run, net) for name, net in (("model", teacher), ("student", student))}


def peer_scores(sources: Sources, run: Run, job: Job) -> dict:
    """Scores of the parent's network; those of the student of a mean teacher under "student"."""
    spec, parent = run.spec, parent_spec(job, "peer")
    data, label_set = open_data(sources, run, spec.validation), LABEL_SETS[spec.label_set]
    state, chosen, metrics = job.parent("peer"), job.parent_record("peer").metrics, {}
    for name in chosen:
        model = build_peer(parent.network)
        model.load_state_dict(state[name])
        metrics[name] = score_peer(
            launch(spec.compute).to_device(model),
            data,
            label_set,
            {key: value for key, value in chosen[name].items() if key != "grid"},
            n_samples=spec.n_samples if name == "model" else 0,
            save_sample=job.save_sample,
            label=f"{run.name}: score",
        )
    job.finish({})
    return {**metrics.pop("model"), **metrics}


def _start(job: Job) -> Mapping | None:
    """Weights of the parent "start"; None without one."""
    return job.parent("start")["model"] if "start" in dict(job.run.parents) else None


def _choice(sources: Sources, run: Run, model: nn.Module) -> dict:
    """Settings of the watershed, chosen on labelled images of the source."""
    spec, selection = run.spec, open_data(sources, run, run.spec.selection)
    images = [selection[i] for i in range(min(spec.n_selection, len(selection)))]
    label_set = LABEL_SETS[spec.label_set]
    return choose_watershed(model, images, label_set, spec.watershed, label=f"{run.name}: watershed")
