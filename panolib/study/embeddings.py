"""Embedding networks side by side: that of the ladder, and others that differ in a setting or two.

Each is trained on the source as the ladder's is, and scored inside the same masks, on the target and on the
images of the source on which its clustering was chosen.
"""

from __future__ import annotations

from panolib.config import ProfileError
from panolib.study.grid import Grid, over_baseline
from panolib.training.run_specs import InstanceBaselineSpec

SOURCE = "source"  # in the variant of the panoptic runs on source images


def declare_embeddings(grid: Grid) -> None:
    """Source-only networks of the section `instance_variants`: {name: what differs from the baseline}.

    Raises ProfileError for a name that is taken, or that makes no name of a run.
    """
    settings = grid.settings
    if settings.instance_variants is None or grid.seed not in (settings.variant_seeds or (grid.seed,)):
        return
    semantic, ladder = grid.run("semantic", "source_only"), grid.run("panoptic", "source_only")
    variants = {"": grid.run("instance", "source_only")}
    for name, changes in settings.instance_variants.items():
        if name in ("", SOURCE):
            raise ProfileError(
                f"{grid.where}: {grid.domain}.instance_variants: expected a name, found {name!r}"
            )
        variants[name] = grid.instance_baseline(
            "source_only", settings.instance_source, settings.instance_selection, semantic, name,
            **over_baseline(InstanceBaselineSpec, settings.instance_baseline, changes),
            where=f"{grid.domain}.instance_variants.{name}",
        )  # fmt: skip
    for name, instance in variants.items():
        networks = ("source_only", semantic, instance)
        target = grid.panoptic(*networks, name, clustering=instance) if name else ladder
        source = grid.panoptic(
            *networks, f"{name}.{SOURCE}" if name else SOURCE, clustering=instance,
            validation=settings.instance_selection,
        )  # fmt: skip
        grid.tag(f"{grid.domain} embeddings", instance, target, source, network=name or "ladder")
