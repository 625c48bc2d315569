"""Embedding networks side by side: that of the ladder, and others that differ in a setting or two.

Each is trained as the ladder's is, and scored inside the same masks, on the target and on the images of the
source on which the clustering was chosen.
"""

from __future__ import annotations

from panolib.config import ProfileError
from panolib.lab.run import Run
from panolib.study.grid import Grid, over_baseline
from panolib.study.study import TEACHER
from panolib.training.run_specs import InstanceBaselineSpec, InstanceSelfTrainingSpec

SOURCE = "source"  # in the variant of the panoptic runs on source images


def declare_embeddings(grid: Grid) -> None:
    """Source-only networks of the section `instance_variants`: {name: what differs from the baseline}.

    Raises ProfileError for a name that is taken, or that makes no name of a run.
    """
    settings = grid.settings
    if settings.instance_variants is None:
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


def declare_instance_ablations(grid: Grid) -> None:
    """Self-training as the section `instance_ablations` changes it, {name: what differs from the ladder's}.

    All start from the rung from which the ladder's self-training does, and learn inside the same masks. Tag
    values: ablation ("none" for the ladder's, "start" for what all start from).

    Raises ProfileError for a name that is taken, and for an ablation that changes nothing.
    """
    settings = grid.settings
    if settings.instance_ablations is None:
        return
    whole = grid.run("instance", "self_trained")
    baseline = over_baseline(
        InstanceSelfTrainingSpec, settings.instance_baseline, settings.instance_self_training
    )
    networks = {"start": grid.start("instance"), "none": whole}
    for name, changes in settings.instance_ablations.items():
        where = f"{grid.domain}.instance_ablations.{name}"
        if name in networks:
            raise ProfileError(f"{grid.where}: {where}: expected another name, {name!r} is taken")
        run = grid.instance_self_training(
            "self_trained", f"ablation.{name}", where=where,
            **over_baseline(InstanceSelfTrainingSpec, baseline, changes),
        )  # fmt: skip
        if run.key == whole.key:
            raise ProfileError(
                f"{grid.where}: {where}: expected settings that differ from instance_self_training"
            )
        networks[name] = run
    for name, run in networks.items():
        grid.tag(f"{grid.domain} ablations", run, *_ablation_scores(grid, name, run), ablation=name)


def _ablation_scores(grid: Grid, name: str, instance: Run) -> list[Run]:
    """Scores inside the masks of the ladder's self-trained network, on target and source."""
    masks = grid.run("semantic", "self_trained")
    scored = {} if name == "start" or not grid.settings.score_teachers else {"scored": "teacher"}
    found = []
    sets = {f"ablation.{name}": None, f"ablation.{name}.{SOURCE}": grid.settings.instance_selection}
    for variant, validation in sets.items():
        found.append(grid.panoptic("self_trained", masks, instance, variant, validation=validation))
        if scored:
            found.append(grid.panoptic(TEACHER, masks, instance, variant, validation=validation, **scored))
    return found
