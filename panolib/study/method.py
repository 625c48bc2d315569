"""The recipe of later work on top of the thesis's method: every part alone, all together, and none of them.

All start from the rung of the ladder from which self-training starts and train equally long, so that runs of
one branch differ in their parts alone. `none` is the thesis's method. The section `method` of a profile names
them:

================  ==========  ===========================================================================
part              branch      what it does
================  ==========  ===========================================================================
slow_teacher      semantic    teacher of decay 0.999, moved every step (Hoyer et al. 2022, DAFormer, but
                              without its ramp-up)
class_mix         semantic    half of the classes of source crops on views of the target (Tranheden et al.
                              2021, DACS)
rare_source       semantic    source images of rare classes are drawn more often (DAFormer)
ego_rows          semantic    no pseudo-label on the rows of the own car (DAFormer; Saha et al. 2023, EDAPS)
confident_weight  instance    a pseudo-label weighs as its share of sure pixels (Martinovic et al. 2024,
                              MC-PanDA)
paste             instance    sure pseudo-labels on source crops (Mansour et al. 2025, LIDAPS)
================  ==========  ===========================================================================

Where a domain has a classifier of objects (`objectness`), `none` and `all` of both branches are also scored
without the detections that it doubts; where it has a choice of clustering and clean-up by PQ
(`cleanup`), also with that. What else the recipe has is measured elsewhere: a profile may give
every network semi-convolutional embeddings, or a bandwidth that each instance learns as a variant
(`instance_variants`), the shared encoder is a ladder (`shared`), objectness as a filter of pseudo-labels is
in `objectness`, rounds are in `refinement`.
"""

from __future__ import annotations

from collections.abc import Mapping

from panolib.config import ProfileError
from panolib.lab.run import Run
from panolib.study.grid import Grid
from panolib.study.objectness import ObjectnessSettings, declare_ranking
from panolib.study.parents import CLEANUP
from panolib.study.settings import Method
from panolib.study.study import MASK_WATERSHED, OTSU_WATERSHED, TEACHER

EXPERIMENT, NONE, ALL = "method", "none", "all"
SEMANTIC, INSTANCE, BOTH, LADDER = "semantic", "instance", "both", "ladder"
CLEANED = "cleaned"  # as both, with the clustering and clean-up of `cleanup`
BESIDE = (  # rungs of the ladder
    "source_only", "control", "self_trained", TEACHER, OTSU_WATERSHED, MASK_WATERSHED, "oracle",
)  # fmt: skip


def declare_method(grid: Grid, settings: Method | None, objectness: ObjectnessSettings | None) -> None:
    """Every part of a domain that the settings name, beside its ladder.

    Tag values: part, and `in_branch`: the branch whose training has it, or both. Parts of the instance branch
    train and are scored inside the masks of the ladder's self-trained network; in both branches, `none` and
    `all` are scored inside masks of their own. Where the ladder scores teachers, so do these. Scores
    of the ladder have the tag, too, with `in_branch` "ladder" and no part.

    Raises ProfileError for a part that trains as `none` does, and for a length that no branch has.
    """
    if settings is None or not settings.takes(grid.domain, grid.seed):
        return
    lengths = settings.domains[grid.domain]
    for run in grid.runs.values():
        if run.branch in ("semantic", "panoptic") and run.rung in BESIDE and not run.variant:
            grid.tag(EXPERIMENT, run, in_branch=LADDER)
    semantic = {
        name: grid.self_training(
            "self_trained", grid.start("semantic"), grid.settings.semantic_source, _variant(name),
            iterations=lengths.semantic_iterations, where=f"method.semantic.{name}", **changed,
        )
        for name, changed in _recipe(settings.semantic, lengths.without).items()
    }  # fmt: skip
    _check_differ(grid, semantic)
    for name, run in semantic.items():
        found = [run]
        if grid.settings.score_teachers:
            found.append(grid.semantic_scores(TEACHER, run, _variant(name), scored="teacher"))
        grid.tag(EXPERIMENT, *found, in_branch=SEMANTIC, part=name)
    if lengths.instance_iterations is None or grid.seed not in settings.seeds_with_instances(grid.domain):
        return
    if not grid.has("instance", "source_only"):
        raise ProfileError(
            f"{grid.where}: method.domains.{grid.domain}.instance_iterations: expected null, it has no "
            f"instance branch, found {lengths.instance_iterations}"
        )
    instance = {
        name: grid.instance_self_training(
            "self_trained", _variant(name), iterations=lengths.instance_iterations,
            where=f"method.instance.{name}", **changed,
        )
        for name, changed in _recipe(settings.instance, lengths.without).items()
    }  # fmt: skip
    _check_differ(grid, instance)
    masks = grid.run("semantic", "self_trained")
    for name, run in instance.items():
        grid.tag(EXPERIMENT, run, in_branch=INSTANCE, part=name)
        _panoptic(grid, masks, run, name, INSTANCE)
    for name in (NONE, ALL):
        _panoptic(grid, semantic[name], instance[name], name, BOTH)
        if objectness is not None and grid.has("objectness", ""):
            _without_doubtful(grid, objectness, semantic[name], instance[name], name)


def _recipe(parts: Mapping[str, Mapping], without: tuple[str, ...]) -> dict[str, dict]:
    """{part: what differs from the settings of self-training}, `none` first, `all` last."""
    alone = {name: dict(changed) for name, changed in parts.items() if name not in without}
    together = {key: value for changed in alone.values() for key, value in changed.items()}
    return {NONE: {}, **alone, ALL: together}


def _panoptic(grid: Grid, semantic: Run, instance: Run, part: str, in_branch: str) -> None:
    """Scores of a pair of students, and of their teachers where the ladder scores these."""
    kinds = {in_branch: {}}
    if in_branch == BOTH and grid.has(CLEANUP, ""):
        chosen = grid.run(CLEANUP, "")
        kinds[CLEANED] = {"cleanup": chosen, "clustering": chosen}
    for kind, values in kinds.items():
        networks = semantic, instance, _variant(part, kind)
        found = [grid.panoptic("self_trained", *networks, **values)]
        if grid.settings.score_teachers:
            found.append(grid.panoptic(TEACHER, *networks, scored="teacher", **values))
        grid.tag(EXPERIMENT, *found, in_branch=kind, part=part)


def _without_doubtful(
    grid: Grid, settings: ObjectnessSettings, semantic: Run, instance: Run, part: str
) -> None:
    """Both branches, with and without the detections that the domain's classifier of objects doubts."""
    networks = semantic, instance, grid.run("objectness", "")
    for rung, scored in (("self_trained", "student"), (TEACHER, "teacher")):
        if scored == "student" or grid.settings.score_teachers:
            found = declare_ranking(
                grid, settings, rung, *networks, _variant(part, BOTH), scored=scored, where="method"
            )
            grid.tag(EXPERIMENT, found, in_branch=BOTH, part=part)


def _variant(part: str, in_branch: str = "") -> str:
    return f"{EXPERIMENT}.{part}" + (f".{in_branch}" if in_branch in (BOTH, CLEANED) else "")


def _check_differ(grid: Grid, runs: Mapping[str, Run]) -> None:
    """Raise ProfileError for a part that changes nothing."""
    for name, run in runs.items():
        if name not in (NONE, ALL) and run.key == runs[NONE].key:
            raise ProfileError(
                f"{grid.where}: method.{run.branch}.{name}: expected settings that differ from those of "
                f"self-training of {grid.domain}"
            )
