"""Embedding networks side by side: that of the ladder, and others that differ in a setting or two.

Each is trained on the source as the ladder's is, and scored inside the same masks, on the target and on the
images of the source on which its clustering was chosen.
"""

from __future__ import annotations

from panolib.config import ProfileError
from panolib.lab.run import Run
from panolib.study.grid import Grid, over_baseline
from panolib.study.run_specs import PanopticSpec
from panolib.training.run_specs import InstanceBaselineSpec

SOURCE = "source"  # in the variant of the panoptic runs on source images


def declare_embeddings(grid: Grid) -> None:
    """Source-only networks of the section `instance_variants`: {name: what differs from the baseline}.

    Raises ProfileError for a name that is taken, or that makes no name of a run.
    """
    settings = grid.settings
    if settings.instance_variants is None:
        return
    semantic = grid.run("semantic", "source_only")
    networks = {"": grid.run("instance", "source_only")}
    for name, changes in settings.instance_variants.items():
        if name in ("", SOURCE):
            raise ProfileError(
                f"{grid.where}: {grid.domain}.instance_variants: expected a name, found {name!r}"
            )
        networks[name] = grid.instance_baseline(
            "source_only", settings.instance_source, settings.instance_selection, semantic, name,
            **over_baseline(InstanceBaselineSpec, settings.instance_baseline, changes),
            where=f"{grid.domain}.instance_variants.{name}",
        )  # fmt: skip
    for name, instance in networks.items():
        ladder = grid.run("panoptic", "source_only") if name == "" else None
        target = ladder or grid.panoptic("source_only", semantic, instance, instance, name)
        source = _on_source(grid, semantic, instance, name)
        for run in (instance, target, source):
            grid.tag(f"{grid.domain} embeddings", run, network=name or "ladder")


def _on_source(grid: Grid, semantic: Run, instance: Run, name: str) -> Run:
    """Scores on the labelled images of the source that training did not see."""
    selection = grid.settings.instance_selection
    return grid.add(
        "panoptic", "panoptic", "source_only", PanopticSpec, "panoptic",
        {"semantic": semantic, "instance": instance, "clustering": instance}, (selection,),
        variant=".".join(part for part in (name, SOURCE) if part), validation=selection,
    )  # fmt: skip
