"""Names of the runs of E5 to E9 under the labels of their tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from panolib.lab.records import Record
from panolib.study.study import Experiments, Study, run_name

Names = dict[str, list[str]]  # label -> runs, one per seed

BASELINE = "baseline"
NETWORKS = {"DeepLabV2": "", "DeepLabV3": "v3", "DeepLabV3+": "v3plus"}
WORKFLOWS = {  # label of experiments.workflows -> label of tables
    "all": "all things",
    "icm": "one class (ICM)",
    "base": "group, common baseline (BASE)",
    "ccm": "group, own baseline (CCM)",
}


def threat(settings: Experiments, variant: str) -> list[str]:
    """The threat runs of a variant, one per seed."""
    return [run_name("city", "threat", "", seed, variant) for seed in settings.seeds]


def by_mask(settings: Experiments) -> Names:
    """E5: networks by the masks inside which they learned instances on the target.

    "predicted masks" has the settings of `all.25` in all profiles whose self-training takes 25 % source.
    """
    variants = {BASELINE: "baseline", "no masks": "masks.none", "predicted masks": "sensitivity"}
    for share in settings.truth_shares:
        percent = round(100 * share)
        variants["true masks" if share == 1 else f"masks {percent} % corrected"] = f"masks.{percent}"
    return {label: threat(settings, variant) for label, variant in variants.items()}


def unguided(settings: Experiments) -> list[str]:
    """E5: the networks of "predicted masks", clustered without masks."""
    return threat(settings, "unguided")


def learning(settings: Experiments) -> Names:
    """E5: the training with and without masks, whose curves say what clustering costs."""
    variants = {"predicted masks": "all.25", "no masks": "masks.none"}
    return {
        label: [run_name("city", "instance", "self_trained", seed, variant) for seed in settings.seeds]
        for label, variant in variants.items()
    }


def painted(settings: Experiments) -> Names:
    """E6: semantic networks by the instances that were painted on their pseudo-labels."""
    variants = {
        "no instances": "painted.none",
        f"{100 * settings.painted_share:g} % of true instances": "painted.true",
        "predicted instances": "painted.predicted",
    }
    return {
        label: [run_name("city", "semantic", "self_trained", seed, variant) for seed in settings.seeds]
        for label, variant in variants.items()
    }


def by_weight(settings: Experiments) -> Names:
    """E7: networks by the weight of the consistency term."""
    return {
        f"weight {weight:g}": [
            run_name("city", "threat", "", seed, f"consistency.{weight:g}")
            for seed in settings.consistency_seeds
        ]
        for weight in settings.consistency_weights
    }


def frameworks(settings: Experiments) -> Names:
    """E8: baselines, then every workflow with every share of source in a batch."""
    names = {BASELINE: "baseline", "baselines of groups": "ccm.baseline"}
    shares = {"all": (0.0, *settings.individual_shares), "icm": settings.individual_shares}
    for workflow, label in WORKFLOWS.items():
        for share in dict.fromkeys(shares.get(workflow, settings.shares)):
            percent = round(100 * share)
            without_source = workflow == "all" and share == 0  # declared with the clusterings of E2
            variant = "mean_shift_plus.zero" if without_source else f"{workflow}.{percent:02d}"
            names[f"{label}, {percent} % source"] = variant
    return {label: threat(settings, variant) for label, variant in names.items()}


def by_network(settings: Experiments) -> Names:
    """E9: one network a class with 25 % source, inside the masks of each semantic network."""
    known = {name: part for name, part in NETWORKS.items() if not part or part in settings.networks}
    return {
        name: threat(settings, ".".join(part for part in ("icm.25", part) if part))
        for name, part in known.items()
    }


def self_trained(seeds: Sequence[int]) -> Names:
    """E6: self-training of the ladder, whose seeds show the noise floor."""
    return {"self-trained": [run_name("city", "semantic", "self_trained", seed) for seed in seeds]}


def components(seeds: Sequence[int]) -> dict[tuple[str, int], str]:
    """E5: panoptic runs of the ladder's self-training, by (rung, seed): embeddings beside components."""
    return {("self_trained", seed): run_name("city", "panoptic", "self_trained", seed) for seed in seeds}


def guided_masks(settings: Experiments, seeds: Sequence[int]) -> tuple[str, ...]:
    """Runs of notebook 05; `seeds` of the ladder."""
    noise = (self_trained(seeds), by_weight(settings))
    parts = (by_mask(settings), {"": unguided(settings)}, learning(settings), painted(settings), *noise)
    return _flat(*(part.values() for part in parts), [components(seeds).values()])


def instance_results(settings: Experiments) -> tuple[str, ...]:
    """Runs of notebook 06."""
    parts = (by_weight(settings), frameworks(settings), by_network(settings))
    return _flat(*(part.values() for part in parts))


def get(study: Study, names: Mapping[str, Sequence[str]]) -> dict[str, list[Record]]:
    """The records of named runs, under the same labels."""
    return {label: [study.get(name) for name in runs] for label, runs in names.items()}


def _flat(*groups) -> tuple[str, ...]:
    """All names once, in order."""
    return tuple(dict.fromkeys(name for group in groups for names in group for name in names))
