"""Active learning (thesis 9.2): a person chooses the better of two segmentations, and training goes on.

Rounds go on from the self-trained networks of the ladder, as those of `refinement`. In every round student
and teacher of the network so far segment the target train images, a person is asked about some of them, and
the network trains itself again: an answered image keeps the segmentation that was chosen as its
pseudo-labels, also in later rounds; all others are clustered as ever. The semantic branch stays that of the
ladder.

==================  ==============================================================================
strategy            which images are asked about
==================  ==============================================================================
disagreement        those that student and teacher segment most differently
expected_change     those whose pseudo-labels an answer would change most
random              any: the control of these rankings
none                none: the control of asking, as long a training
full_labels         none; the minutes of as many answers go into outlining whole images
person              those that a real person has answered, all in the first round (`study.person`)
==================  ==============================================================================

The person of the others is simulated (`active.person`), and wrong now and then; one who is wrong in half of
the cases says nothing, and is the control of what a choice says. Nothing but their answers and full labels
reads labels of target train images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from skimage.segmentation import mark_boundaries

from panolib.active.pairs import NETWORKS, packed, segmentations, unpacked
from panolib.active.person import choice, outlined, true_overlaps
from panolib.active.queries import STRATEGIES, expected_change, overlap, ranked
from panolib.clustering.algorithms import Algorithm
from panolib.config import (
    Count,
    Counts,
    Different,
    Natural,
    NonNegative,
    Positive,
    ProfileError,
    Share,
    from_mapping,
    later,
    spec,
    to_plain,
)
from panolib.data.samples import Sample
from panolib.inference.predict import one_by_one
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.study.grid import Grid
from panolib.study.kinds import Sources, open_data
from panolib.study.parents import clustering_of, parent_network
from panolib.study.person import Given, check_given, read_given
from panolib.study.settings import InDomains
from panolib.study.study import TEACHER
from panolib.training.run_specs import RunSpec
from panolib.training.specs import StudentOrTeacher

EXPERIMENT, ORACLE = "active", "active oracle"
NOBODY, FULL_LABELS, PERSON = "none", "full_labels", "person"  # beside the strategies of `queries`
VERSIONS = {"active_candidates": 1, "active_answers": 1, "active_labels": 1}


@spec(kw_only=True)
class CandidatesSpec(RunSpec):
    """Segmentations by student and teacher of all target images, and how images rank; nothing is trained."""

    target: str  # without labels
    algorithm: Algorithm
    min_size: Natural  # of masks and instances, pixels of the embedding grid
    guide: StudentOrTeacher  # of the semantic parent, which predicts the masks
    n_samples: Natural  # pairs that are kept as pictures, the most different ones


@spec(kw_only=True)
class AnswersSpec(RunSpec):
    """Answers of a person to one round of questions, beside those of earlier rounds."""

    target: str  # with labels, which only the simulated person sees; of a real one without
    strategy: Literal[(*STRATEGIES, PERSON)]
    n_answers: Count  # of this round
    wrong: Share  # of the simulated answers
    given: Given | None = later(None)  # by a real person


@spec(kw_only=True)
class LabelsSpec(RunSpec):
    """Whole images, drawn at random, whose objects a person outlines within some seconds."""

    target: str
    seconds: NonNegative
    seconds_per_object: Positive


@spec
class ActiveSettings(InDomains):
    """Section `active` of a profile."""

    rounds: Count
    answers: Annotated[Counts, Different]  # of all rounds together; 0 is always there
    wrong: Annotated[tuple[Share, ...], Different]  # with the first strategy and the most answers, beside 0
    iterations: Count  # of the self-training of each round
    answered_share: Share  # of the target crops
    seconds_per_answer: Positive
    seconds_per_object: Positive  # of full labels
    n_samples: Natural
    answers_folder: str | None = None  # of a real person: pairs and answers.jsonl; a course of its own

    def __post_init__(self):
        super().__post_init__()
        fewest = min(self.answers)
        if fewest < self.rounds:
            raise ValueError(f"answers: expected {self.rounds} or more, one a round, found {fewest}")

    def seconds(self, n_answers: int) -> float:
        """What so many answers take."""
        return n_answers * self.seconds_per_answer


@dataclass(frozen=True)
class Course:
    """What is asked in all rounds."""

    strategy: str
    n_answers: int = 0
    wrong: float = 0.0

    @property
    def variant(self) -> str:
        """As part of the names of its runs."""
        parts = ["active", self.strategy]
        parts += [str(self.n_answers)] if self.n_answers else []
        parts += [f"wrong{100 * self.wrong:g}"] if self.wrong else []
        return ".".join(parts)


def courses(settings: ActiveSettings) -> list[Course]:
    """All that are compared, controls included."""
    most = max(settings.answers)
    asked = [Course(strategy, n) for n in settings.answers for strategy in (*STRATEGIES, FULL_LABELS)]
    wrong = [Course(STRATEGIES[0], most, share) for share in settings.wrong if share > 0]
    return [Course(NOBODY), *asked, *wrong]


def active_candidates(sources: Sources, run: Run, job: Job) -> dict:
    """Segment all images with both networks; metrics: how far they differ. Keeps a few pairs as pictures."""
    spec, target = run.spec, open_data(sources, job, run.spec.target)
    guide = parent_network(job, "semantic", spec.guide)
    student, teacher = (parent_network(job, "instance", name) for name in NETWORKS)
    clustering = {"algorithm": spec.algorithm, "min_size": spec.min_size, **clustering_of(job)}
    pngs: dict[str, dict] = {name: {} for name in NETWORKS}
    differs, change = [], []
    for sample in one_by_one(target, f"{run.name}: pairs"):
        pair, stability = segmentations(
            guide, student, teacher, sample, LABEL_SETS[spec.label_set], seed=spec.seed, **clustering
        )
        differs.append(1 - overlap(*pair))
        change.append(expected_change(*pair, *stability))  # training goes on from the student
        for name, labels in zip(NETWORKS, pair):
            pngs[name][sample.id] = packed(labels)
    scores = {"disagreement": np.array(differs), "expected_change": np.array(change)}
    for number, index in enumerate(ranked("disagreement", scores, len(target), seed=0)[: spec.n_samples]):
        sample = target[int(index)]
        job.save_sample(f"{number:02d}-image", sample.image)
        for name in NETWORKS:
            picture = mark_boundaries(sample.image, unpacked(pngs[name][sample.id]), color=(1, 0.85, 0))
            job.save_sample(f"{number:02d}-{name}", (255 * picture).astype(np.uint8))
    job.finish({**pngs, "scores": {name: torch.from_numpy(values) for name, values in scores.items()}})
    return {
        "disagreement": float(np.mean(differs)),
        "expected_change": float(np.mean(change)),
        "same": float(np.mean(np.array(differs) == 0)),  # share of images on which nothing is to be chosen
    }


def active_answers(sources: Sources, run: Run, job: Job) -> dict:
    """Ask the simulated person; metrics: what was chosen, and what it overlaps with the truth.

    Of a real person, who has answered: what was chosen, and the seconds of it.
    """
    spec, target = run.spec, open_data(sources, job, run.spec.target)
    if spec.given is not None:
        return _given_answers(spec.given, target, job)
    candidates = job.parent("candidates")
    known = job.parent("before")["labels"] if "before" in dict(run.parents) else {}
    scores = {name: values.numpy() for name, values in candidates["scores"].items()}
    order = ranked(spec.strategy, scores, len(target), seed=spec.seed)
    asked = [int(index) for index in order if target.ids[index] not in known][: spec.n_answers]
    if len(asked) < spec.n_answers:
        raise ValueError(
            f"{run.name}: {spec.n_answers} answers about {spec.target}, of whose {len(target)} images "
            f"{len(known)} have one; expected fewer answers"
        )
    answered, rows = {}, []
    for index in asked:
        sample = target[index]
        pair = [candidates[name][sample.id] for name in NETWORKS]
        overlaps = true_overlaps(sample, [unpacked(png) for png in pair])
        taken = choice(overlaps, wrong=spec.wrong, seed=spec.seed, image=sample.id)
        answered[sample.id] = pair[taken]
        rows.append({
            "image": sample.id, "chosen": NETWORKS[taken], **dict(zip(NETWORKS, overlaps)),
            "disagreement": float(scores["disagreement"][index]), "overlap": overlaps[taken],
        })  # fmt: skip
    job.finish({"labels": {**known, **answered}})
    means = {name: float(np.mean([row[name] for row in rows])) for name in (*NETWORKS, "overlap")}
    chose_teacher = np.mean([row["chosen"] == NETWORKS[1] for row in rows])
    return {"n_answers": len(known) + len(rows), "chose_teacher": float(chose_teacher), **means, "rows": rows}


def _given_answers(given: Given, target: Sequence[Sample], job: Job) -> dict:
    """Keep what a real person chose; an image with neither is clustered like one without an answer."""
    check_given(given, dict(job.run.parents)["candidates"], target.ids)
    candidates = job.parent("candidates")
    chosen = [answer for answer in given.answers if answer.choice is not None]
    job.finish({"labels": {answer.image: candidates[answer.choice][answer.image] for answer in chosen}})
    disagreement = dict(zip(target.ids, candidates["scores"]["disagreement"].tolist()))
    rows = [{
        "image": answer.image, "chosen": answer.choice or "neither", "seconds": answer.seconds,
        "disagreement": disagreement[answer.image],
    } for answer in given.answers]  # fmt: skip
    means = {f"chose_{name}": float(np.mean([row["chosen"] == name for row in rows]))
             for name in ("neither", NETWORKS[1])}  # fmt: skip
    seconds = [answer.seconds for answer in given.answers]
    return {
        "n_answers": len(rows), **means, "seconds": float(np.sum(seconds)),
        "seconds_per_answer": float(np.median(seconds)), "rows": rows,
    }  # fmt: skip


def active_labels(sources: Sources, run: Run, job: Job) -> dict:
    """Take the true instances of as many images as there is time for; metrics: what that took."""
    spec, target = run.spec, open_data(sources, job, run.spec.target)
    order = ranked("random", {}, len(target), seed=spec.seed)
    found = dict(outlined((target[int(i)] for i in order), spec.seconds, spec.seconds_per_object))
    job.finish({"labels": {image: packed(labels) for image, labels in found.items()}})
    n_objects = sum(int(labels.max(initial=0)) for labels in found.values())
    return {
        "n_images": len(found), "n_objects": n_objects, "seconds": n_objects * spec.seconds_per_object,
    }  # fmt: skip


def read_settings(settings: Mapping | None, where: str) -> ActiveSettings | None:
    """The section; None where it is left out."""
    if settings is None:
        return None
    found = from_mapping(ActiveSettings, settings, where=f"{where}: active")
    given = read_given(found.answers_folder)
    if given is not None and not found.takes(given.domain, given.seed):
        expected = " or ".join(f"{name} with one of {list(found.seeds_of(name))}" for name in found.domains)
        raise ProfileError(
            f"{where}: active.answers_folder: {found.answers_folder} has pairs of {given.domain} with seed "
            f"{given.seed}; expected {expected}"
        )
    return found


def declare_active(grid: Grid, settings: ActiveSettings | None) -> None:
    """Every course, round by round, beside the ladder of a domain that the settings name.

    Tag values: strategy, answers (of full labels: those that take as long), wrong (of a simulated person),
    round, to_go (rounds that follow), largest (whether it has the most answers of the settings). The oracle
    of the ladder, if it has one, is an experiment of its own: what all labels give.
    """
    if settings is None or not settings.takes(grid.domain, grid.seed):
        return
    ladder = grid.run("instance", "self_trained")
    semantic = grid.run("semantic", "self_trained")
    if grid.has("panoptic", "oracle"):
        grid.tag(ORACLE, grid.run("panoptic", "oracle"))
    given = read_given(settings.answers_folder)
    compared = courses(settings)
    if given is not None and (given.domain, given.seed) == (grid.domain, grid.seed):
        compared.append(Course(PERSON, len(given.answers)))
    for course in compared:
        instance, answers = ladder, None
        for number in range(1, settings.rounds + 1):
            variant = f"{course.variant}.{number}"
            of_round, values = [], {}
            by = given if course.strategy == PERSON else None
            if course.strategy != NOBODY:
                if by is None or number == 1:  # a real person has answered once
                    of_round = _answers(grid, settings, course, variant, number, instance, answers, by)
                    answers = of_round[-1]
                values = {"answered_share": settings.answered_share, "parents": {"answers": answers}}
            instance = grid.instance_self_training(
                "self_trained", variant, start=instance, iterations=settings.iterations, where="active",
                **values,
            )  # fmt: skip
            of_round.append(instance)
            if number == settings.rounds:
                networks = semantic, instance, variant
                of_round += [
                    grid.panoptic("self_trained", *networks, n_samples=0),
                    grid.panoptic(TEACHER, *networks, n_samples=0, scored="teacher"),
                ]
            grid.tag(
                EXPERIMENT, *of_round, strategy=course.strategy, answers=course.n_answers,
                wrong=course.wrong, round=number, to_go=settings.rounds - number,
                largest=course.n_answers == max(settings.answers),
            )  # fmt: skip


def _answers(
    grid: Grid, settings: ActiveSettings, course: Course, variant: str, number: int, instance: Run,
    before: Run | None, given: Given | None,
) -> list[Run]:  # fmt: skip
    """The runs of one round of asking, the answers last. Full labels begin anew with the same images.

    `given`: what a real person has answered, all in one round.
    """
    so_far = [course.n_answers * n // settings.rounds for n in (number - 1, number)]
    at = {"variant": variant, "where": "active"}
    if course.strategy == FULL_LABELS:
        return [grid.add(
            "active_labels", "answers", "", LabelsSpec, "", {}, (grid.train,), **at, target=grid.train,
            seconds=settings.seconds(so_far[1]), seconds_per_object=settings.seconds_per_object,
        )]  # fmt: skip
    trained = instance.spec
    candidates = grid.add(
        "active_candidates", "candidates", "", CandidatesSpec, "",
        {"semantic": grid.run("semantic", "self_trained"), "instance": instance,
         "clustering": grid.run("instance", "source_only")},
        (grid.unlabelled,), **at, target=grid.unlabelled, algorithm=trained.algorithm,
        min_size=trained.min_area, guide=trained.guide, n_samples=settings.n_samples,
    )  # fmt: skip
    target, values = grid.train, {"n_answers": so_far[1] - so_far[0], "wrong": course.wrong}
    if given is not None:
        target, values = grid.unlabelled, {"n_answers": len(given.answers), "wrong": 0.0}
        values["given"] = to_plain(given)
    parents = {"candidates": candidates} | ({} if before is None else {"before": before})
    return [candidates, grid.add(
        "active_answers", "answers", "", AnswersSpec, "", parents, (target,), **at, target=target,
        strategy=course.strategy, **values,
    )]  # fmt: skip
