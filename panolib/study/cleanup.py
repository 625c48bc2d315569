"""Clustering and clean-up that are chosen together on the source, beside the ladder: `scoring.cleanup`.

The ladder chooses its clustering by the threat score and has a clean-up that was set by hand.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from panolib.config import Count, Different, Natural, NonNegative, Positive, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.scoring.cleanup import choose_cleanup
from panolib.study.grid import Grid
from panolib.study.kinds import Sources, selected
from panolib.study.parents import CLEANUP, parent_network
from panolib.study.run_specs import MergeRules
from panolib.study.study import TEACHER, WITH_TEACHER
from panolib.training.run_specs import RunSpec

VERSIONS = {"cleanup": 1}
TRAINED = ("self_trained", TEACHER)  # rungs whose embeddings learn from clusters


@spec(kw_only=True)
class CleanupSpec(RunSpec):
    """The settings to try on the first `n_selection` images of the source's `selection`."""

    selection: str
    n_selection: Count
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1), Different]  # embedding units
    merge_distances: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    min_sizes: Annotated[tuple[Natural, ...], Field(min_length=1), Different]  # pixels of the embedding grid
    openings: Annotated[tuple[Natural, ...], Field(min_length=1), Different]  # kernels, pixels; 0: none
    merge_rules: MergeRules

    def __post_init__(self):
        if even := [kernel for kernel in self.openings if kernel and kernel % 2 == 0]:
            raise ValueError(f"openings: expected 0 or odd kernels, found {even}")


def cleanup(sources: Sources, run: Run, job: Job) -> dict:
    """Choose how the embeddings of a network become objects inside the masks of another one."""
    spec = run.spec
    metrics = choose_cleanup(
        parent_network(job, "semantic"),
        parent_network(job, "instance"),
        selected(sources, job),
        LABEL_SETS[spec.label_set],
        bandwidths=spec.bandwidths,
        merge_distances=spec.merge_distances,
        min_sizes=spec.min_sizes,
        openings=spec.openings,
        merge_rules=spec.merge_rules,
        label=f"{run.name}: choice",
    )
    job.finish({})
    return metrics


def declare_cleanup(grid: Grid) -> None:
    """The choice, for the networks that saw the source only; self-training with it, and scores of all rungs.

    The oracle keeps its own clustering, which was chosen on labels of the target.
    """
    settings = grid.settings
    if settings.cleanup is None:
        return
    semantic, instance = (grid.run(branch, "source_only") for branch in ("semantic", "instance"))
    chosen = grid.add(
        "cleanup", CLEANUP, "", CleanupSpec, "cleanup", {"semantic": semantic, "instance": instance},
        (settings.instance_selection,), selection=settings.instance_selection,
        n_selection=settings.instance_baseline["n_selection"], merge_rules=settings.panoptic["merge_rules"],
    )  # fmt: skip
    trained = grid.instance_self_training("self_trained", CLEANUP, clustering=chosen)
    for rung in WITH_TEACHER:
        if grid.has("panoptic", rung):
            ladder = grid.run("panoptic", rung)
            networks = dict(ladder.parents)
            scored = grid.panoptic(
                rung, networks["semantic"], trained if rung in TRAINED else networks["instance"], CLEANUP,
                cleanup=chosen, clustering=networks["clustering"] if rung == "oracle" else chosen,
                scored=ladder.spec.scored,
            )  # fmt: skip
            grid.tag(f"{grid.domain} {CLEANUP}", ladder, scored)
