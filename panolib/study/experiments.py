"""The experiments of the thesis (E1 to E11; chapters 8, 10 to 12) as tagged runs beside the city's ladder.

===  ====================================================  ==========================================
E    question                                              tag values
===  ====================================================  ==========================================
E1   which source, which DeepLab (semantic)                source, network
E2   which clustering, with or without epsilon rings       algorithm, ring
E3   one network or several; share of source in a batch    workflow, share; of a network also classes
E4   the same with smaller source crops                    workflow, share
E5   masks that guide instances                            learned, corrected, clustered
E6   instances that guide masks                            painted
E7   weight of the consistency term                        weight
E9   final instance models inside masks of each DeepLab    network
E10  which DeepLab (panoptic)                              network
E11  what is learned when
E12  parts of SAC, one changed at a time                   ablation
===  ====================================================  ==========================================

(E8 looks at the runs of E3; "sources" are those of E1 with the ladder's DeepLab.) Instance networks here
start where self-training of the ladder starts, and use the masks of its self-trained DeepLab, whose
version is the profile's (the thesis takes V2: its V3 and V3+ miss trains). "threat" runs score them. Where
the profile shortens trainings here (`shorter`), networks of the ladder, which train longer, are not
compared with them: E1, E9 and E10 then train the ladder's DeepLab again, as shortly as the others, and
without oracles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from panolib.config import ProfileError, from_mapping, to_plain
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.study.grid import Grid
from panolib.study.run_specs import ClusteringCostSpec, ThreatSpec
from panolib.study.settings import Experiments
from panolib.study.study import RUNGS, WITH_TEACHER
from panolib.training.run_specs import InstanceSelfTrainingSpec
from panolib.training.specs import SemanticNetwork

MASKS = (0.0, 1.0)  # inside predicted masks, inside true ones
NETWORK_NAMES = {"v2": "v2", "v3": "v3", "v3+": "v3plus"}  # DeepLab's version -> tag value


def declare_experiments(grid: Grid, settings: Experiments) -> None:
    """Declare what the settings ask for with the seed of the grid."""
    network = _ladder_network(grid)
    rungs = [rung for rung in WITH_TEACHER if grid.has("semantic", rung)]
    grid.tag("semantic ladder", *(grid.run("semantic", rung) for rung in rungs))
    in_order = [rung for rung in RUNGS if rung in rungs]
    for rung in () if _shortened(settings) else in_order:  # every seed of the ladder
        grid.tag("E1", grid.run("semantic", rung), source="mix", network=network)
        grid.tag("sources", grid.run("semantic", rung), source="mix")
        grid.tag("E10", grid.run("panoptic", rung), network=network)
    grid.tag("E5", grid.run("panoptic", "self_trained"), learned="predicted masks", corrected=0.0)
    if grid.seed in settings.seeds:
        networks_and_sources(grid, settings)
        clusterings(grid, settings)
        workflows(grid, settings)
        guidance(grid, settings)
        ablations(grid, settings)
    if grid.seed in settings.consistency_seeds:
        consistency_weights(grid, settings)


def networks_and_sources(grid: Grid, settings: Experiments) -> None:
    """E1, E10, E11: the ladder's DeepLab on each source alone; other versions on MIX, with their own oracles
    and panoptic scores."""
    base, mix = dict(grid.settings.semantic_baseline["network"]), grid.settings.semantic_source
    own = _ladder_network(grid)
    if own in settings.networks:
        raise ProfileError(
            f"{grid.where}: experiments.networks: expected other networks than the ladder's, found {own!r}"
        )
    variants = {(name, own): (source, base) for name, source in settings.sources.items()}
    for name, other in settings.networks.items():
        where = f"{grid.where}: experiments.networks.{name}"
        network = from_mapping(SemanticNetwork, base | dict(other), where=where)
        variants["mix", name] = mix, to_plain(network)
    if _shortened(settings):
        variants["mix", own] = mix, base
    monitor = _monitor(settings, (grid.train, grid.val))
    shorter = _shorter(settings, "semantic_baseline")
    for (source_name, network_name), (source, network) in variants.items():
        variant, values = f"{source_name}.{network_name}", {"source": source_name, "network": network_name}
        watched = {"monitor": monitor} if (source_name, network_name) == ("mix", own) else {}
        start = grid.semantic_baseline(
            "source_only", source, variant, network=network, **shorter, **watched
        )
        if watched:
            grid.tag("E11", start)
        adapted = {
            rung: grid.semantic_batch_norm(rung, start, source, variant, network=network)
            for rung in ("adabn", "abn")
        }
        adapted["source_only"] = start
        start = adapted[grid.settings.self_training_start]
        adapted["self_trained"] = grid.self_training(
            "self_trained", start, source, variant, network=network, **_shorter(settings, "self_training")
        )
        for run in adapted.values():
            grid.tag("E1", run, **values)
            if network_name == own:
                grid.tag("sources", run, source=source_name)
    for source_name, name in variants:
        if source_name != "mix":
            continue
        variant = f"mix.{name}"
        if not _shortened(settings):
            oracle = grid.semantic_baseline("oracle", grid.train, variant, network=variants["mix", name][1])
            grid.tag("E1", oracle, source="mix", network=name)
        for rung in ("abn", "self_trained"):
            networks = grid.run("semantic", rung, variant), grid.run("instance", rung)
            grid.tag("E10", grid.panoptic(rung, *networks, variant), network=name)

    if not _shortened(settings):
        grid.tag("E11", grid.semantic_baseline("source_only", mix, "monitored", monitor=monitor))
    run = grid.self_training(
        "self_trained", grid.start("semantic"), mix, "monitored", data=(grid.train, grid.val),
        monitor=monitor, **_shorter(settings, "self_training"),
    )  # fmt: skip
    grid.tag("E11", run)


def clusterings(grid: Grid, settings: Experiments) -> None:
    """E2: every algorithm, without and with epsilon rings that shrink while the network trains."""
    ladder = _self_training(grid)
    margins = ladder.margins
    decay = {"epsilon_0": settings.epsilon_0, "epsilon_tau": settings.epsilon_tau}
    rings = {"zero": replace(margins, epsilon_0=0.0), "decay": replace(margins, **decay)}
    for algorithm in settings.algorithms:
        for ring in rings:
            if (algorithm, ring) == ("connected_components", "decay"):
                continue  # they have no ring to widen
            variant = f"{algorithm}.{ring}"
            options = {"algorithm": algorithm, "margins": to_plain(rings[ring]), "source_share": 0.0}
            run = _self_trained(grid, settings, variant, **options)
            threat = _threat(grid, settings, variant, {"all": run})
            grid.tag("E2", run, threat, algorithm=algorithm, ring=ring)
            if (algorithm, rings[ring]) == (ladder.algorithm, margins):  # what E3 has with no source
                grid.tag("E3", run, workflow="all", share=0.0, classes="all")
                grid.tag("E3", threat, workflow="all", share=0.0)
    cost = grid.add(
        "clustering_cost", "clustering_cost", "", ClusteringCostSpec, "", {}, (),
        where="experiments.clustering_cost", algorithms=settings.algorithms, **settings.clustering_cost,
        embedding_dim=_self_training(grid).network.embedding_dim,
    )  # fmt: skip
    grid.tag("E2", cost)


def workflows(grid: Grid, settings: Experiments) -> None:
    """E3, E4, E8, E9: one network for all things, one a class (ICM), one a group from the common baseline
    (BASE) or from a baseline of the group (CCM); several shares of source in a batch."""
    label_set = LABEL_SETS[grid.settings.label_set]
    groups = dict(label_set.groups)
    single = {name.replace(" ", "_"): (name,) for name in label_set.things}
    source, selection = grid.settings.instance_source, grid.settings.instance_selection

    baseline = _threat(grid, settings, "baseline", {"all": grid.run("instance", "abn")})
    grid.tag("E2", baseline, algorithm="baseline", ring="")
    grid.tag("E3", baseline, workflow="baseline")
    grid.tag("E5", baseline, learned="baseline", clustered="inside masks")
    starts = {}
    for name, classes in groups.items() if "ccm" in settings.shares else ():
        variant = f"ccm.{name}"
        semantic = grid.run("semantic", "source_only")
        baseline = grid.instance_baseline(
            "source_only", source, selection, semantic, variant, classes=classes
        )
        rung = grid.settings.self_training_start
        starts[name] = baseline, grid.instance_batch_norm(rung, baseline, variant)
    if starts:
        networks = {name: start for name, (_, start) in starts.items()}
        grid.tag("E3", _threat(grid, settings, "ccm.baseline", networks), workflow="ccm baseline")

    of_e2 = {tag.values["share"] for tag in grid.tags if tag.values.get("workflow") == "all"}
    members = {"all": {"": None}, "icm": single, "base": groups, "ccm": groups}
    for workflow, shares in settings.shares.items():
        for share in shares if workflow != "all" else (share for share in shares if share not in of_e2):
            percent = f"{round(100 * share):02d}"
            networks = {}
            for name, classes in members[workflow].items():
                variant = ".".join(part for part in (workflow, name, percent) if part)
                values = {} if classes is None else {"classes": classes}
                if workflow == "ccm":
                    values |= dict(zip(("clustering", "start"), starts[name]))
                run = _self_trained(grid, settings, variant, source_share=share, **values)
                networks[name or "all"] = run
                grid.tag("E3", run, workflow=workflow, share=share, classes=name or "all")
            run = _threat(grid, settings, f"{workflow}.{percent}", networks)
            grid.tag("E3", run, workflow=workflow, share=share)

    if 0.25 in settings.shares.get("icm", ()):
        networks_of_masks(grid, settings, single)
    crops = _self_trained(
        grid, settings, "crops", source_share=0.25,
        augmentation=to_plain(replace(_self_training(grid).augmentation, scale=settings.crop_scale)),
    )  # fmt: skip
    scores = _threat(grid, settings, "crops", {"all": crops})
    grid.tag("E4", crops, scores, workflow="smaller crops", share=0.25)
    of_e3 = grid.run("instance", "self_trained", "all.25"), grid.run("threat", "", "all.25")
    grid.tag("E4", *of_e3, workflow="all", share=0.25)


def networks_of_masks(grid: Grid, settings: Experiments, classes: Iterable[str]) -> None:
    """E9: the networks of ICM with a quarter of source, inside the masks of each DeepLab."""
    best = {name: grid.run("instance", "self_trained", f"icm.{name}.25") for name in classes}
    networks = list(settings.networks)
    if _shortened(settings):
        networks.append(_ladder_network(grid))
    else:
        grid.tag("E9", grid.run("threat", "", "icm.25"), network=_ladder_network(grid))
    for name in networks:
        semantic = grid.run("semantic", "self_trained", f"mix.{name}")
        grid.tag("E9", _threat(grid, settings, f"icm.25.{name}", best, semantic=semantic), network=name)


def guidance(grid: Grid, settings: Experiments) -> None:
    """E5: instances learned without masks, or with corrected ones. E6: instances painted on pseudo-labels."""
    for share in settings.truth_shares:
        variant = f"masks.{round(100 * share)}"
        run = _self_trained(grid, settings, variant, target=grid.train, truth_share=share)
        threat = _threat(grid, settings, variant, {"all": run}, truth_shares=(0.0, *settings.truth_shares))
        grid.tag("E5", run, threat, learned="corrected masks", corrected=share, clustered="inside masks")
    run = _self_trained(grid, settings, "masks.none", guided=False)
    threat = _threat(grid, settings, "masks.none", {"all": run})
    grid.tag("E5", run, threat, learned="without masks", clustered="inside masks")
    predicted = {"learned": "predicted masks", "corrected": 0.0}
    # all.25 has the settings of the ladder's self-training where that takes 25 % source, and its iterations
    own = "all.25" if _shorter(settings, "instance_self_training") else ""
    networks = {"all": grid.run("instance", "self_trained", own)}
    run = _threat(grid, settings, "unguided", networks, guided=False)
    grid.tag("E5", run, **predicted, clustered="without masks")
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    run = _threat(grid, settings, "sensitivity", networks, truth_shares=shares)
    trained = grid.run("instance", "self_trained", "all.25")
    grid.tag("E5", run, trained, **predicted, clustered="inside masks")

    mix, start = grid.settings.semantic_source, grid.run("semantic", "self_trained")
    instances = {
        "instance": grid.run("instance", "self_trained"),
        "clustering": grid.run("instance", "source_only"),
    }
    shorter = _shorter(settings, "self_training")
    none = grid.self_training("self_trained", start, mix, "painted.none", **shorter)
    true = grid.self_training(
        "self_trained", start, mix, "painted.true", target=grid.train, painted="true",
        painted_share=settings.painted_share, **shorter,
    )  # fmt: skip
    predicted = grid.self_training(
        "self_trained", start, mix, "painted.predicted",
        parents=instances | {"semantic": start}, painted="predicted", **shorter,
    )  # fmt: skip
    for painted, run in {"none": none, "true": true, "predicted": predicted}.items():
        grid.tag("E6", run, painted=painted)


def consistency_weights(grid: Grid, settings: Experiments) -> None:
    """E7: the weight of the consistency term, over seeds that show the noise floor."""
    weights = _self_training(grid).weights
    for weight in settings.consistency_weights:
        variant = f"consistency.{weight:g}"
        run = grid.instance_self_training(
            "self_trained", variant, weights=to_plain(replace(weights, consistency=weight)),
            **_shorter(settings, "instance_self_training"),
        )  # fmt: skip
        grid.tag("E7", run, _threat(grid, settings, variant, {"all": run}), weight=weight)


def ablations(grid: Grid, settings: Experiments) -> None:
    """E12: SAC of the ladder with one of its parts changed."""
    shorter = _shorter(settings, "self_training")
    whole = grid.run("semantic", "self_trained", "monitored" if shorter else "")
    grid.tag("E12", whole, ablation="none")
    for name, changed in (settings.ablations or {}).items():
        where, source = f"experiments.ablations.{name}", grid.settings.semantic_source
        run = grid.self_training(
            "self_trained", grid.start("semantic"), source, f"ablation.{name}", where=where,
            **shorter | changed,
        )  # fmt: skip
        if all(value == getattr(whole.spec, name) for name, value in changed.items()):
            raise ProfileError(f"{grid.where}: {where}: expected settings that differ from self_training")
        grid.tag("E12", run, ablation=name)


def _ladder_network(grid: Grid) -> str:
    """Tag value of the ladder's DeepLab."""
    return NETWORK_NAMES[grid.run("semantic", "source_only").spec.network.version]


def _shorter(settings: Experiments, section: str) -> dict[str, int]:
    """Iterations of a training, where experiments have their own."""
    shorter = settings.shorter or {}
    return {"iterations": shorter[section]} if section in shorter else {}


def _shortened(settings: Experiments) -> bool:
    """Whether semantic networks of experiments train less than those of the ladder."""
    return bool(_shorter(settings, "semantic_baseline") or _shorter(settings, "self_training"))


def _self_training(grid: Grid) -> InstanceSelfTrainingSpec:
    """The settings of the ladder's self-training, which experiments vary."""
    return grid.run("instance", "self_trained").spec


def _self_trained(grid: Grid, settings: Experiments, variant: str, **values) -> Run:
    """Instance self-training that is scored on target and source while it trains."""
    data = (grid.train, grid.val, grid.settings.instance_selection)
    return grid.instance_self_training(
        "self_trained", variant, data=data, monitor=_monitor(settings, data),
        **_shorter(settings, "instance_self_training"), **values,
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
        "threat", "threat", "", ThreatSpec, "", parents, (grid.val,), variant=variant,
        min_size=grid.settings.panoptic["min_size"], truth_shares=truth_shares, kernels=settings.kernels,
        guided=guided, scored=settings.scored,
    )  # fmt: skip


def _monitor(settings: Experiments, data: tuple[str, ...]) -> dict:
    return {"interval": settings.monitor_interval, "n_images": settings.monitor_images, "data": data}
