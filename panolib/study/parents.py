"""What a run takes from its parents: their specs, their networks with the final weights, their clustering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from panolib.clustering.algorithms import SEEDS
from panolib.data.mixing import source_share_counts
from panolib.lab.files import CorruptCheckpoint
from panolib.lab.job import Job
from panolib.lab.records import Record
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.models.shared import SharedNetwork
from panolib.training.setup import build_instance, build_semantic, build_shared, launch
from panolib.training.specs import Compute, InstanceNetwork, SharedNetworks, StudentOrTeacher

CLEANUP = "cleanup"  # a role: what chose how clusters are cleaned up


def has_teacher(run: Run) -> bool:
    """Whether a run ends with two networks: it trained itself, and is not the control of one that does."""
    if run.kind == "instance_self_training":
        return source_share_counts(run.spec.batch_size, run.spec.source_share)[1] > 0
    if run.kind in ("self_training", "shared_self_training"):
        return run.spec.target_weight > 0
    return run.kind == "meta_labels"


def learned_classes(run: Run) -> tuple[str, ...] | None:
    """Thing classes of an instance run, None for all; batch-norm adaptation has those of its start."""
    while not hasattr(run.spec, "classes"):
        run = dict(run.parents)["start"]
    return run.spec.classes


def parent_spec(job: Job, role: str) -> Any:
    """The spec of the parent in this role."""
    return dict(job.run.parents)[role].spec


def parent_network(job: Job, role: str, network: StudentOrTeacher = "student") -> nn.Module:
    """The network of a parent, with its final weights, on the device of the run.

    Of a shared network the one that the role names, "semantic" or "instance"; any other role has it whole.
    The teacher of a parent that has one (`has_teacher`) where it is wanted, else the only network.
    """
    parent = dict(job.run.parents)[role]
    state = wanted_weights(parent, job.parent(role), network)
    model = trained_network(parent.spec, {"model": state}, job.spec.compute)
    branch = role.partition(".")[0]
    return getattr(model, branch) if isinstance(model, SharedNetwork) and hasattr(model, branch) else model


def wanted_weights(run: Run, state: Mapping, network: StudentOrTeacher) -> Mapping[str, Tensor]:
    """Of the final state of a run the weights of the network that is wanted; its only one, if it has one."""
    if network == "student" or not has_teacher(run):
        return state["model"]
    if "teacher" not in state:
        raise CorruptCheckpoint(
            f"run '{run.name}': expected the weights of student and teacher, found {sorted(state)}, "
            "kept before teachers were; delete the checkpoint.pt beside its record: it is trained again"
        )
    return state["teacher"]


def trained_network(spec, state: Mapping, compute: Compute) -> nn.Module:
    """The network of the spec of a run with the weights of its final state, where `compute` says."""
    if isinstance(spec.network, InstanceNetwork):
        model = build_instance(spec.network, pretrained=False)
    else:
        build = build_shared if isinstance(spec.network, SharedNetworks) else build_semantic
        model = build(spec.network, LABEL_SETS[spec.label_set].n_classes, pretrained=False)
    model.load_state_dict(state["model"])
    return launch(compute).to_device(model)


def clustering_of(job: Job, role: str = "clustering") -> dict[str, float | str]:
    """Clustering settings that were chosen on the training domain; of a learned bandwidth the algorithm."""
    network = getattr(parent_spec(job, role), "network", None)  # none of a choice that a run of its own made
    if getattr(network, "bandwidth", None) == "learned":
        return {"algorithm": SEEDS}
    chosen = job.parent_record(role).metrics
    return {"bandwidth": chosen["bandwidth"], "delta_dist": chosen["delta_dist"]}


def cleanup_of(run: Run, record_of: Callable[[str], Record]) -> dict[str, Any]:
    """`min_size`, `opening` and `merge_rules` of a panoptic run: its own, or those that a parent chose.

    `record_of`: the record of the parent in a role.
    """
    spec = run.spec
    if CLEANUP not in dict(run.parents):
        return {"min_size": spec.min_size, "opening": spec.opening, "merge_rules": spec.merge_rules}
    chosen = record_of(CLEANUP).metrics
    others = (rule for rule in spec.merge_rules if rule != chosen["merge_rule"])
    rules = (chosen["merge_rule"], *others)
    return {"min_size": chosen["min_size"], "opening": chosen["opening"], "merge_rules": rules}
