"""How the measuring runs of notebooks 02 and 14 are executed; nothing is trained."""

from __future__ import annotations

from panolib.lab import provenance
from panolib.lab.job import Job
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.study.kinds import Sources, open_data
from panolib.study.parents import clustering_of, parent_spec, trained_network
from panolib.training.specs import Compute

CPU = Compute("cpu", "32-true", 0, False)  # on which all is measured

VERSIONS = {"performance": 1, "clustering_cost": 1}


def performance(sources: Sources, run: Run, job: Job) -> dict:
    """Core operations beside what people use today (`bench`); nothing is trained."""
    from panolib.bench import operations as bench  # scikit-learn and more, which no other kind needs
    from panolib.bench import step as bench_step
    from panolib.bench.instance_step import instance_step_rows
    from panolib.bench.peers import peer_versions

    spec, label_set = run.spec, LABEL_SETS[run.spec.label_set]
    network = trained_network(parent_spec(job, "instance"), job.parent("instance"), CPU)
    chosen = {**clustering_of(job), "min_size": spec.min_size}
    options = {name: {**chosen, "algorithm": name} for name in ("mean_shift", "mean_shift_plus")}
    for name in ("mean_shift_peel", "mean_shift_grid"):
        options[name] = {**chosen, "algorithm": name, "min_points": spec.min_size}
    images = open_data(sources, job, spec.validation)
    images = [images[i] for i in range(min(spec.n_images, len(images)))]
    label = f"{run.name}: "
    metrics = {
        "step": bench_step.step_rows(spec),
        "scaling": bench.scaling_rows(spec, label=f"{label}scaling"),
        "step_scaling": bench_step.step_scaling_rows(spec, label=f"{label}step scaling"),
        "step_overhead": bench_step.step_overhead(spec),
        "instance_step": instance_step_rows(spec.instance_step, repeats=spec.repeats, seed=spec.seed),
        "operations": bench.operation_rows(spec, label=label),
        "real_embeddings": bench.real_embedding_rows(
            network, images, label_set, options, label=f"{label}real embeddings"
        ),
        "rendering": bench.rendering_rows(spec),
        "start": bench.start_rows(spec.repeats),
        "processor": provenance.processor(),
        "peers": peer_versions(),
    }
    job.finish({})
    return metrics


def clustering_cost(sources: Sources, run: Run, job: Job) -> dict:
    """Time and memory of one call of every clustering; nothing is trained."""
    from panolib.bench.operations import cost_rows

    rows = cost_rows(run.spec, label=run.name)
    job.finish({})
    return {"rows": rows, "processor": provenance.processor()}
