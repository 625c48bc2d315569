"""The runs of notebook 09: one BiSeNet adapted in every way, to the city and to real streets (CamVid).

All start from the same source-only network. Its batch statistics are adapted first (AdaBN); every method
goes on from there for the same number of iterations with as many source crops, the same optimiser and batch
statistics. SAC and its control have the crops of the ladder's self-training, and views of fewer target
images; the others have the crops of its semantic baseline. Where a profile sets the two sizes apart, a
difference between them is also one of crops.

===============  =====================================================================================
method           what it adds to the source loss
===============  =====================================================================================
control          nothing: the target only moves the batch statistics
fcd, light       adversarial loss with either discriminator
ssl1, ssl2, ssl3 the same as light, and pseudo-labels that 1, 2 or 3 heads of "light" made once
mpl_...          Meta Pseudo Labels, with either sign of the feedback, or "rt"
self_trained     SAC, as in the other notebooks
===============  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

from panolib.config import Different, Natural, NonNegative, Share, from_mapping, spec, to_plain
from panolib.data.readers import DOMAINS
from panolib.lab.run import Run
from panolib.related.realtime.adversarial import AdversarialSpec
from panolib.related.realtime.kinds import GallerySpec, LabelQualitySpec
from panolib.related.realtime.layered_pseudo_labels import RULES
from panolib.related.realtime.meta_pseudo_labels import FEEDBACK, MetaSpec
from panolib.related.realtime.speed import SpeedSpec
from panolib.study.grid import Grid
from panolib.study.settings import Profile
from panolib.study.study import Tag, run_name
from panolib.training.specs import SemanticNetwork

BISENET = "bisenet"  # variant of all names here
PER_IMAGE = "ssl1_image"  # thresholds per image, on the city only
PICTURED = ("source_only", "light", "ssl1", "self_trained", "oracle")
LADDER_NETWORKS = ("", "mix.v3", "mix.v3plus")  # oracles of notebook 01


@spec
class Realtime:
    """Settings of notebook 09; those of the city are used where nothing is said."""

    seeds: tuple[int, ...]
    network: Mapping
    baseline: Mapping  # source-only and oracle
    adaptation: Mapping  # of every method: optimiser, iterations, batch_size, n_target, batch_norm
    self_training: Mapping  # of SAC alone
    adversary: Mapping
    weights: Annotated[tuple[NonNegative, ...], Different]  # more lambdas, on the city
    rule: Literal[RULES]  # of the pseudo-labels: thresholds over the whole "set" or each "image"
    threshold: Share
    meta: Mapping
    n_pictures: Natural
    speed: Mapping


def declare_realtime(
    profile: Profile, sources: Mapping, ladder: Mapping[str, Run], where: str
) -> tuple[dict[str, Run], list[Tag]]:
    """All runs by name, with their tags. `ladder`: runs of the city that are timed beside."""
    where = f"{where}: realtime"
    settings = from_mapping(Realtime, profile.realtime, where=where)
    runs: dict[str, Run] = {}
    tags: list[Tag] = []
    for seed in settings.seeds:
        for domain in (profile.main, *profile.targets):
            grid = _grid(domain, profile, settings, sources[domain], seed, where)
            _declare_methods(grid, settings, runs, profile.main)
            for run in grid.runs.values():
                grid.tag("realtime", run, **({"method": run.rung} if run.branch == "semantic" else {}))
            runs |= grid.runs
            tags += grid.tags
    known = {**ladder, **runs}
    own = own_networks(profile, settings, known)
    latency = _latency(profile, settings, {name: known[run].spec.network for name, run in own.items()}, where)
    tags.append(Tag("speed", latency.name, {}))
    tags += [Tag("speed", run, {"name": name}) for name, run in own.items()]
    return runs | {latency.name: latency}, tags


def method_name(domain: str, method: str, seed: int) -> str:
    return run_name(domain, "semantic", method, seed, BISENET)


def _grid(domain: str, profile: Profile, settings: Realtime, sources, seed: int, where: str) -> Grid:
    """A grid whose sections are those of the main domain with the settings of this notebook."""
    main = profile.ladders[profile.main]
    sections = {
        "semantic_baseline": {
            **main.semantic_baseline, **settings.baseline, "network": settings.network
        },
        "self_training": {
            **main.self_training, **settings.adaptation, **settings.self_training, "network": settings.network
        },
    }  # fmt: skip
    target = main.target if domain == profile.main else domain
    return Grid(domain, replace(main, target=target, **sections), profile.compute, sources, seed, where)


def _declare_methods(grid: Grid, settings: Realtime, declared: Mapping[str, Run], main: str) -> None:
    source, at_home = grid.settings.semantic_source, grid.domain == main
    if at_home:
        start = grid.semantic_baseline("source_only", source, BISENET)
    else:
        of_main = declared[method_name(main, "source_only", grid.seed)]
        start = grid.transfer("source_only", of_main, BISENET)
    grid.semantic_baseline("oracle", grid.train, BISENET, label_set=DOMAINS[grid.domain].label_set)
    adabn = grid.semantic_batch_norm("adabn", start, source, BISENET)
    grid.self_training("control", adabn, source, BISENET, target_weight=0.0)
    grid.self_training("self_trained", adabn, source, BISENET)

    shared = {
        **settings.adaptation, "source": source, "target": grid.unlabelled, "validation": grid.val,
        "optimiser": settings.adaptation.get("optimiser", grid.settings.self_training["optimiser"]),
    }  # fmt: skip
    data = (source, grid.unlabelled, grid.val)

    def adversarial(method: str, labels: Mapping | None = None, **values) -> Run:
        parents = {"start": adabn}
        if labels is not None:
            parents["labels"] = grid.run("semantic", "light", BISENET)
            labels = {"rule": settings.rule, "threshold": settings.threshold, **labels}
        return grid.add(
            "adversarial_adaptation", "semantic", method, AdversarialSpec, "", parents, data,
            variant=BISENET, where="adaptation", **shared, pseudo_labels=labels,
            adversary={**settings.adversary, **values},
        )  # fmt: skip

    for kind in ("fcd", "light"):
        adversarial(kind, kind=kind)
    for n_layers in (1, 2, 3):
        adversarial(f"ssl{n_layers}", {"n_layers": n_layers}, kind="light")
    if at_home:
        adversarial(PER_IMAGE, {"n_layers": 1, "rule": "image"}, kind="light")
        for weight in settings.weights:
            adversarial(f"fcd.{weight:g}", kind="fcd", weight=weight)

    modes = {
        "mpl_old": ("paper", FEEDBACK[0]),
        "mpl_new": ("paper", FEEDBACK[1]),
        "mpl_rt": ("rt", FEEDBACK[0]),
    }
    for method, (mode, feedback) in modes.items():
        thresholds = {"threshold": settings.threshold if mode == "rt" else None}
        grid.add(
            "meta_labels", "semantic", method, MetaSpec, "", {"start": adabn}, data, variant=BISENET,
            where="meta", **shared, **thresholds, **settings.meta, mode=mode, feedback=feedback,
            adversary={**settings.adversary, "kind": "light"},
        )  # fmt: skip

    parents = {"labels": grid.run("semantic", "light", BISENET)}
    grid.add(
        "label_quality", "labels", "", LabelQualitySpec, "", parents, (grid.train,), variant=BISENET,
        target=grid.train, threshold=settings.threshold,
    )  # fmt: skip
    if at_home:
        parents = {method: grid.run("semantic", method, BISENET) for method in PICTURED}
        grid.add(
            "gallery", "gallery", "", GallerySpec, "", parents, (grid.val,), variant=BISENET,
            validation=grid.val, n_samples=settings.n_pictures,
        )  # fmt: skip


def own_networks(profile: Profile, settings: Realtime, runs: Mapping[str, Run]) -> dict[str, str]:
    """{label: run} of the target-supervised networks of this profile that are timed at their own size."""
    seed = settings.seeds[0]
    names = {"BiSeNet": method_name(profile.main, "oracle", seed)}
    for variant in LADDER_NETWORKS:
        name = run_name(profile.main, "semantic", "oracle", seed, variant)
        if name in runs:  # experiments that train shorter have no oracles
            names[f"DeepLab{runs[name].spec.network.version.upper()}"] = name
    return names


def _latency(profile: Profile, settings: Realtime, own: Mapping[str, SemanticNetwork], where: str) -> Run:
    """The one run that measures time, of our `own` networks too."""
    augmentation = profile.ladders[profile.main].semantic_baseline["augmentation"]
    values = {
        "own_height": augmentation["height"], "own_width": augmentation["width"], **settings.speed,
        "label_set": profile.ladders[profile.main].label_set, "compute": dict(profile.compute),
        "seed": settings.seeds[0],
        "own": {name: to_plain(network) for name, network in own.items()},
    }  # fmt: skip
    name = run_name(profile.main, "latency", "", settings.seeds[0])
    spec = from_mapping(SpeedSpec, values, where=f"{where}.speed")
    return Run(name=name, kind="latency", spec=spec, domain=profile.main, branch="latency")
