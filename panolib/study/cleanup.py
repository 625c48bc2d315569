"""A clean-up of clusters that is chosen on the source, beside the ladder: `scoring.cleanup`.

The ladder's own is set by hand, while watershed and components may choose theirs on the source.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from panolib.config import Count, Different, Natural, spec
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.scoring.cleanup import choose_cleanup
from panolib.study.grid import Grid
from panolib.study.kinds import Sources, selected
from panolib.study.parents import CLEANUP, clustering_of, parent_network
from panolib.study.run_specs import MergeRules
from panolib.study.study import WITH_TEACHER
from panolib.training.run_specs import RunSpec

VERSIONS = {"cleanup": 1}


@spec(kw_only=True)
class CleanupSpec(RunSpec):
    """The settings to try on the first `n_selection` images of the source's `selection`."""

    selection: str
    n_selection: Count
    min_sizes: Annotated[tuple[Natural, ...], Field(min_length=1), Different]  # pixels of the embedding grid
    openings: Annotated[tuple[Natural, ...], Field(min_length=1), Different]  # kernels, pixels; 0: none
    merge_rules: MergeRules


def cleanup(sources: Sources, run: Run, job: Job) -> dict:
    """Choose a clean-up of the clusters of two networks."""
    spec = run.spec
    metrics = choose_cleanup(
        parent_network(job, "semantic"),
        parent_network(job, "instance"),
        selected(sources, job),
        LABEL_SETS[spec.label_set],
        min_sizes=spec.min_sizes,
        openings=spec.openings,
        merge_rules=spec.merge_rules,
        label=f"{run.name}: clean-up",
        **clustering_of(job),
    )
    job.finish({})
    return metrics


def declare_cleanup(grid: Grid) -> None:
    """The choice, of the networks that saw the source only, and every rung, scored with it."""
    settings = grid.settings
    if settings.cleanup is None:
        return
    semantic, instance = (grid.run(branch, "source_only") for branch in ("semantic", "instance"))
    chosen = grid.add(
        "cleanup", CLEANUP, "", CleanupSpec, "cleanup",
        {"semantic": semantic, "instance": instance, "clustering": instance}, (settings.instance_selection,),
        selection=settings.instance_selection, n_selection=settings.instance_baseline["n_selection"],
        merge_rules=settings.panoptic["merge_rules"],
    )  # fmt: skip
    for rung in WITH_TEACHER:
        if grid.has("panoptic", rung):
            ladder = grid.run("panoptic", rung)
            networks = dict(ladder.parents)
            scored = grid.panoptic(
                rung, networks["semantic"], networks["instance"], CLEANUP, cleanup=chosen,
                clustering=networks["clustering"], scored=ladder.spec.scored,
            )  # fmt: skip
            grid.tag(f"{grid.domain} {CLEANUP}", ladder, scored)
