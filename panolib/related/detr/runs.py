"""The runs of DETR-panoptic, here Mask2Former, on the city, all supervised on the target's training images.

Methods section 10.

=================  ===========================================================================================
variant            question
=================  ===========================================================================================
``plain``          the reference of all others
``colour``         the colour-only policy, for as many epochs
``colour-half``    the same for half the epochs, as in the slides' table
``plain-n50`` ...  fewer training images, for as many iterations
=================  ===========================================================================================

Each network is scored on the target, on the two other styles of the city, and on CamVid; one is measured
beside our pipeline with the same supervision (rung "oracle").
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from panolib.config import Count, Different, Natural, Positive, Size, from_mapping, spec, to_plain
from panolib.related.detr.kinds import DetrCostSpec, DetrScoresSpec
from panolib.related.detr.network import DetrNetwork
from panolib.related.detr.score import QueryRule
from panolib.related.detr.training import ColourPolicy, DetrSpec
from panolib.study.grid import Grid
from panolib.training.specs import Optimiser

PLAIN, COLOUR, HALF = "plain", "colour", "colour-half"


@spec
class DetrSettings:
    """Section `detr` of a profile."""

    seeds: tuple[int, ...]
    n_images: Count | None  # of the target's training images; None: all
    curve_sizes: Annotated[tuple[Count, ...], Different]  # smaller training sets
    size: Size | None
    network: DetrNetwork
    optimiser: Optimiser
    clip: Positive
    colours: ColourPolicy
    mask_stride: Count
    iterations: Annotated[int, Field(ge=2)]  # one variant takes half of them
    batch_size: Count
    rule: QueryRule
    elsewhere: tuple[str, ...]  # data sets of other styles
    n_samples: Natural
    cost_batch: Count
    cost_repeats: Count | None  # None: nothing is measured


def read_settings(section: Mapping, where: str) -> DetrSettings:
    return from_mapping(DetrSettings, section, where=f"{where}: detr")


def variants(settings: DetrSettings) -> dict[str, dict]:
    """{variant: what differs from `plain`}."""
    colours = {"colours": to_plain(settings.colours)}
    half = colours | {"iterations": settings.iterations // 2}
    sizes = {f"{PLAIN}-n{n}": {"n_images": n} for n in settings.curve_sizes}
    return {PLAIN: {}, COLOUR: colours, HALF: half, **sizes}


def declare_detr(grid: Grid, settings: DetrSettings, targets: Mapping) -> None:
    """Declare training and scores of every variant, and the comparison, with the seed of the grid.

    `targets`: the data sets of further domains, whose validation images are scored, too.
    """
    if grid.seed not in settings.seeds:
        return
    section = to_plain(settings)
    shared = {name: section[name] for name in DetrSpec.__dataclass_fields__ if name in section}
    # the library computes losses in the precision of the network: bf16 has steps of 1/256
    shared["compute"] = dict(grid.compute) | {"precision": "32-true"}
    places = [(grid, (grid.val, *settings.elsewhere), settings.n_samples)]
    for domain, sources in targets.items():
        other = Grid(domain, grid.settings, grid.compute, sources, grid.seed, grid.where)
        places.append((other, (f"{domain}/val",), 0))  # no picture of real images may be kept
    for variant, values in variants(settings).items():
        trained = grid.add(
            "detr", "detr", variant, DetrSpec, "", {}, (grid.train,),
            **(shared | {"source": grid.train, "colours": None} | values),
        )  # fmt: skip
        coordinates = {
            "colours": "colours" in values, "iterations": trained.spec.iterations,
            "n_images": trained.spec.n_images,
        }  # fmt: skip
        grid.tag("detr", trained, **coordinates)
        for place, names, n_samples in places:
            scores = place.add(
                "detr_scores", "detr_scores", variant, DetrScoresSpec, "", {"detr": trained}, names,
                validation=names, rule=section["rule"], n_samples=n_samples,
            )  # fmt: skip
            grid.tag("detr", scores, **coordinates)
    for place, _, _ in places[1:]:
        grid.runs |= place.runs
    grid.tag("detr", grid.run("panoptic", "oracle"))
    if settings.cost_repeats is None:
        return
    parents = {"semantic": grid.run("semantic", "oracle"), "instance": grid.run("instance", "oracle")}
    cost = grid.add(
        "detr_cost", "detr_cost", "", DetrCostSpec, "",
        {"detr": grid.run("detr", PLAIN), **parents, "clustering": parents["instance"]},
        (grid.train, grid.val), train=grid.train, validation=grid.val, rule=section["rule"],
        min_size=grid.settings.panoptic["min_size"], merge_rule=grid.settings.panoptic["merge_rules"][0],
        batch_size=settings.cost_batch, repeats=settings.cost_repeats,
    )  # fmt: skip
    grid.tag("detr", cost)
