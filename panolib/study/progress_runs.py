"""Names of the runs that the clustering, workflow and forgetting notebooks read (E2 to E4)."""

from __future__ import annotations

from panolib.labels import CITYSCAPES
from panolib.study.study import Experiments, run_name
from panolib.study.threat_runs import by_weight

RINGS = ("zero", "decay")
WORKFLOWS = ("all", "icm", "base", "ccm")
CLUSTERING_COST = "clustering_cost"


def clustering_variants(experiments: Experiments) -> dict[tuple[str, str], str]:
    """{(algorithm, "zero" or "decay"): variant} of E2; connected components have no ring to widen."""
    return {
        (algorithm, ring): f"{algorithm}.{ring}"
        for algorithm in experiments.algorithms
        for ring in RINGS
        if (algorithm, ring) != ("connected_components", "decay")
    }


def shares(workflow: str, experiments: Experiments) -> tuple[float, ...]:
    """Shares of source in a batch with which a workflow is trained."""
    if workflow == "all":  # share 0 is the default clustering of E2
        return tuple(sorted({0.0, *experiments.individual_shares}))
    return experiments.individual_shares if workflow == "icm" else experiments.shares


def workflow_variants(workflow: str, share: float) -> dict[str, str]:
    """{classes it answers for: variant} of the networks of one workflow."""
    if workflow == "all":
        return {"all": threat_variant("all", share)}
    members = CITYSCAPES.things if workflow == "icm" else CITYSCAPES.groups
    percent = f"{round(100 * share):02d}"
    return {name: f"{workflow}.{name.replace(' ', '_')}.{percent}" for name in members}


def threat_variant(workflow: str, share: float) -> str:
    """Variant of the threat run that scores all networks of a workflow together."""
    if (workflow, share) == ("all", 0):
        return "mean_shift_plus.zero"
    return f"{workflow}.{round(100 * share):02d}"


def noise(experiments: Experiments) -> tuple[str, ...]:
    """Scored networks of several seeds: what another seed alone may change in a score of the others."""
    return tuple(name for names in by_weight(experiments).values() for name in names)


def clustering_comparison(experiments: Experiments) -> tuple[str, ...]:
    """Runs of 02_clustering_comparison."""
    variants = clustering_variants(experiments).values()
    own = (
        name
        for seed in experiments.seeds
        for name in (
            *(network(variant, seed) for variant in variants),
            *(threat(variant, seed) for variant in variants),
            run_name("city", CLUSTERING_COST, "", seed),
        )
    )
    return (*own, *noise(experiments))


def category_models(experiments: Experiments) -> tuple[str, ...]:
    """Runs of 03_category_models."""
    chosen = [(workflow, share) for workflow in WORKFLOWS for share in shares(workflow, experiments)]
    own = tuple(
        name
        for seed in experiments.seeds
        for name in (
            threat("baseline", seed),
            threat("ccm.baseline", seed),
            *(
                network(variant, seed)
                for workflow, share in chosen
                for variant in workflow_variants(workflow, share).values()
            ),
            *(threat(threat_variant(workflow, share), seed) for workflow, share in chosen),
        )
    )
    return (*own, *noise(experiments))


def forgetting(experiments: Experiments) -> tuple[str, ...]:
    """Runs of 04_forgetting."""
    crops = (name("crops", seed) for seed in experiments.seeds for name in (network, threat))
    return (*category_models(experiments), *crops)


def network(variant: str, seed: int) -> str:
    """Name of a self-trained instance network."""
    return run_name("city", "instance", "self_trained", seed, variant)


def threat(variant: str, seed: int) -> str:
    """Name of a run that scores instance networks."""
    return run_name("city", "threat", "", seed, variant)
