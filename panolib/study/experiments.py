"""The experiments of the thesis (E1 to E11; chapters 8, 10 and 11) as runs beside the ladder of the city.

=====  =====================================================  =============================================
E      question                                               variants
=====  =====================================================  =============================================
E1     which source, which DeepLab                            ``syn.v2`` ``gta.v2`` ``mix.v3`` ``mix.v3plus``
E2     which clustering, with or without epsilon rings        ``mean_shift.zero`` ``mean_shift.decay`` ...
E3/E4  one network or several; how much source in a batch     ``all.25`` ``icm.car.25`` ``base.auto.25`` ...
E5     masks that guide instances                             ``masks.none`` ``masks.50`` ``masks.100``
E6     instances that guide masks                             ``painted.true`` ``painted.predicted``
E7     weight of the consistency term                         ``consistency.0.1`` ...
E8/E9  final instance models, morphology, DeepLab             "threat" runs of the networks above
E11    what is learned when                                   ``monitored``
=====  =====================================================  =============================================

Instance networks here start where self-training of the ladder starts, and use the masks of its self-trained
DeepLabV2 (the thesis takes V2, too: V3 and V3+ miss trains). "threat" runs score them.
"""

from __future__ import annotations

from collections.abc import Mapping

from panolib.config import from_mapping, to_plain
from panolib.lab.runs import Run
from panolib.labels import LABEL_SETS
from panolib.study.grid import Grid
from panolib.study.kinds import ClusteringCostSpec, ThreatSpec
from panolib.study.progress_runs import clustering_variants
from panolib.study.study import Experiments
from panolib.training.setup import SemanticNetwork

MASKS = (0.0, 1.0)  # inside predicted masks, inside true ones


def declare_experiments(grid: Grid, settings: Experiments) -> None:
    """Declare what the settings ask for with the seed of the grid."""
    if grid.seed in settings.seeds:
        networks_and_sources(grid, settings)
        clusterings(grid, settings)
        workflows(grid, settings)
        guidance(grid, settings)
    if grid.seed in settings.consistency_seeds:
        consistency_weights(grid, settings)


def networks_and_sources(grid: Grid, settings: Experiments) -> None:
    """E1, E10, E11: V2 on each source alone; V3 and V3+ on MIX, with their own oracles; panoptic scores."""
    base, mix = dict(grid.settings.semantic_baseline["network"]), grid.settings.semantic_source
    variants = {f"{name}.v2": (source, base) for name, source in settings.sources.items()}
    for name, other in settings.networks.items():
        where = f"{grid.where}: experiments.networks.{name}"
        network = from_mapping(SemanticNetwork, base | dict(other), where=where)
        variants[f"mix.{name}"] = mix, to_plain(network)
    for variant, (source, network) in variants.items():
        start = grid.semantic_baseline("source_only", source, variant, network=network)
        adapted = {
            rung: grid.semantic_batch_norm(rung, start, source, variant, network=network)
            for rung in ("adabn", "abn")
        }
        start = adapted[grid.settings.self_training_start]
        grid.self_training("self_trained", start, source, variant, network=network)
    for variant in (f"mix.{name}" for name in settings.networks):
        grid.semantic_baseline("oracle", grid.train, variant, network=variants[variant][1])
        for rung in ("abn", "self_trained"):
            instance = grid.run("instance", rung)
            clustering = grid.run("instance", "source_only")
            grid.panoptic(rung, grid.run("semantic", rung, variant), instance, clustering, variant)

    data = (grid.train, grid.val)
    monitor = _monitor(settings, data)
    start = grid.semantic_baseline("source_only", mix, "monitored", monitor=monitor)
    grid.self_training(
        "self_trained", grid.run("semantic", grid.settings.self_training_start), mix, "monitored",
        data=data, monitor=monitor,
    )


def clusterings(grid: Grid, settings: Experiments) -> None:
    """E2: every algorithm, without and with epsilon rings that shrink while the network trains."""
    margins = dict(grid.settings.instance_baseline["margins"])
    rings = {
        "zero": margins | {"epsilon_0": 0.0},
        "decay": margins | {"epsilon_0": settings.epsilon_0, "epsilon_tau": settings.epsilon_tau},
    }
    for (algorithm, ring), variant in clustering_variants(settings).items():
        options = {"algorithm": algorithm, "margins": rings[ring], "source_share": 0.0}
        _threat(grid, settings, variant, {"all": _self_trained(grid, settings, variant, **options)})
    grid.add(
        "clustering_cost", "clustering_cost", "", ClusteringCostSpec, "", {}, (),
        where="experiments.clustering_cost", algorithms=settings.algorithms, **settings.clustering_cost,
        embedding_dim=grid.settings.instance_baseline["network"]["embedding_dim"],
    )  # fmt: skip


def workflows(grid: Grid, settings: Experiments) -> None:
    """E3, E4, E8, E9: one network for all things, one a class (ICM), one a group from the common baseline
    (BASE) or from a baseline of the group (CCM); several shares of source in a batch."""
    label_set = LABEL_SETS[grid.settings.label_set]
    groups = dict(label_set.groups)
    single = {name.replace(" ", "_"): (name,) for name in label_set.things}
    source, selection = grid.settings.instance_source, grid.settings.instance_selection

    _threat(grid, settings, "baseline", {"all": grid.run("instance", "abn")})
    starts = {}
    for name, classes in groups.items():
        variant = f"ccm.{name}"
        semantic = grid.run("semantic", "source_only")
        baseline = grid.instance_baseline(
            "source_only", source, selection, semantic, variant, classes=classes
        )
        rung = grid.settings.self_training_start
        starts[name] = baseline, grid.instance_batch_norm(rung, baseline, variant)
    _threat(grid, settings, "ccm.baseline", {name: start for name, (_, start) in starts.items()})

    for workflow, members, shares in (
        ("all", {"": None}, settings.individual_shares),
        ("icm", single, settings.individual_shares),
        ("base", groups, settings.shares),
        ("ccm", groups, settings.shares),
    ):
        for share in shares:
            if workflow == "all" and share == 0:
                continue  # that is "mean_shift_plus.zero" of E2
            percent = f"{round(100 * share):02d}"
            networks = {}
            for name, classes in members.items():
                variant = ".".join(part for part in (workflow, name, percent) if part)
                values = {} if classes is None else {"classes": classes}
                start = starts[name] if workflow == "ccm" else None
                run = _self_trained(grid, settings, variant, start=start, source_share=share, **values)
                networks[name or "all"] = run
            _threat(grid, settings, f"{workflow}.{percent}", networks)

    best = {name: grid.run("instance", "self_trained", f"icm.{name}.25") for name in single}
    for name in settings.networks:
        semantic = grid.run("semantic", "self_trained", f"mix.{name}")
        _threat(grid, settings, f"icm.25.{name}", best, semantic=semantic)
    _self_trained(
        grid, settings, "crops", source_share=0.25,
        augmentation=dict(grid.settings.instance_baseline["augmentation"]) | {"scale": settings.crop_scale},
    )  # fmt: skip
    _threat(grid, settings, "crops", {"all": grid.run("instance", "self_trained", "crops")})


def guidance(grid: Grid, settings: Experiments) -> None:
    """E5: instances learned without masks, or with corrected ones. E6: instances painted on pseudo-labels."""
    label_set_shares = {f"masks.{round(100 * share)}": share for share in settings.truth_shares}
    for variant, share in label_set_shares.items():
        run = _self_trained(grid, settings, variant, target=grid.train, truth_share=share)
        _threat(grid, settings, variant, {"all": run}, truth_shares=(0.0, *settings.truth_shares))
    run = _self_trained(grid, settings, "masks.none", guided=False)
    _threat(grid, settings, "masks.none", {"all": run})
    _threat(grid, settings, "unguided", {"all": grid.run("instance", "self_trained")}, guided=False)
    _threat(
        grid, settings, "sensitivity", {"all": grid.run("instance", "self_trained")},
        truth_shares=(0.0, 0.25, 0.5, 0.75, 1.0),
    )  # fmt: skip

    mix, start = grid.settings.semantic_source, grid.run("semantic", "self_trained")
    instances = {
        "instance": grid.run("instance", "self_trained"),
        "clustering": grid.run("instance", "source_only"),
    }
    grid.self_training("self_trained", start, mix, "painted.none")
    grid.self_training(
        "self_trained", start, mix, "painted.true", target=grid.train, painted="true",
        painted_share=settings.painted_share,
    )  # fmt: skip
    grid.self_training(
        "self_trained", start, mix, "painted.predicted",
        parents=instances | {"semantic": start}, painted="predicted",
    )  # fmt: skip


def consistency_weights(grid: Grid, settings: Experiments) -> None:
    """E7: the weight of the consistency term, over seeds that show the noise floor."""
    weights = dict(grid.settings.instance_baseline["weights"])
    for weight in settings.consistency_weights:
        variant = f"consistency.{weight:g}"
        run = grid.instance_self_training(
            "self_trained", grid.run("instance", grid.settings.self_training_start),
            grid.run("instance", "source_only"), grid.run("semantic", "self_trained"), variant,
            weights=weights | {"consistency": weight},
        )  # fmt: skip
        _threat(grid, settings, variant, {"all": run})


def _self_trained(
    grid: Grid, settings: Experiments, variant: str, *, start: tuple[Run, Run] | None = None, **values
) -> Run:
    """Instance self-training that is scored on target and source while it trains.

    `start`: a baseline and its batch-norm adaptation; those of the ladder if None.
    """
    rung = grid.settings.self_training_start
    baseline, adapted = start or (grid.run("instance", "source_only"), grid.run("instance", rung))
    data = (grid.train, grid.val, grid.settings.instance_selection)
    return grid.instance_self_training(
        "self_trained", adapted, baseline, grid.run("semantic", "self_trained"), variant,
        data=data, monitor=_monitor(settings, data), **values,
    )  # fmt: skip


def _threat(
    grid: Grid, settings: Experiments, variant: str, networks: Mapping[str, Run], *,
    semantic: Run | None = None, guided: bool = True,
    truth_shares: tuple[float, ...] = MASKS,
) -> Run:  # fmt: skip
    """Scores of networks by the classes that they answer for; each with the clustering of its baseline."""
    parents = {"semantic": semantic or grid.run("semantic", "self_trained")}
    for name, run in networks.items():
        own = dict(run.parents)
        parents[f"instance.{name}"] = run
        parents[f"clustering.{name}"] = own.get("clustering") or own["start"]
    if not guided:
        truth_shares = (0.0,)
    return grid.add(
        "threat", "threat", "", ThreatSpec, "", parents, (grid.val,), variant=variant, validation=grid.val,
        min_size=grid.settings.panoptic["min_size"], truth_shares=truth_shares, kernels=settings.kernels,
        guided=guided,
    )  # fmt: skip


def _monitor(settings: Experiments, data: tuple[str, ...]) -> dict:
    return {"interval": settings.monitor_interval, "n_images": settings.monitor_images, "data": data}
