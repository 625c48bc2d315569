"""The runs of one domain and one seed: the ladder, and what other experiments declare beside it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from panolib.config import Count, ProfileError, from_mapping, spec, to_plain
from panolib.lab.run import Run
from panolib.labels import LABEL_SETS
from panolib.models.weights import weights_fingerprint
from panolib.study.run_specs import ClassicalSpec, GapSpec, PanopticSpec, SemanticScoresSpec, TransferSpec
from panolib.study.settings import Domain
from panolib.study.study import (
    BATCH_NORM_RUNGS,
    GAP_RUNGS,
    MASK_WATERSHED,
    OTSU_RUNGS,
    RUNGS,
    TEACHER,
    WITH_TEACHER,
    Tag,
    run_name,
)
from panolib.training.run_specs import (
    BaselineSpec,
    InstanceBaselineSpec,
    InstanceBatchNormSpec,
    InstanceSelfTrainingSpec,
    SelfTrainingSpec,
    SemanticBatchNormSpec,
)

SOURCE = "source"  # in the variant of panoptic runs on source images
STAGES = {  # what a self-trained network of a branch has gone through: sections of the settings
    "semantic": ("semantic_baseline", "self_training"),
    "instance": ("instance_baseline", "instance_self_training"),
}


@spec
class Budget:
    """The part of a spec that says how long a run trains."""

    iterations: Count


class Grid:
    """Runs as they are declared, parents before children.

    Attributes
    ----------
    runs : dict of str to Run
    where : str
        The file, and within it what the runs are for; begins the messages of errors.
    train, val, unlabelled : str
        Data sets of the target; `val` is of the source where the settings say so.
    """

    def __init__(self, domain: str, settings: Domain, compute: Mapping, sources, seed: int, where: str):
        self.domain, self.settings, self.compute, self.seed = domain, settings, compute, seed
        self.where = where
        self.runs: dict[str, Run] = {}
        self.tags: list[Tag] = []
        self.train, self.val = f"{settings.target}/train", settings.validation or f"{settings.target}/val"
        self.unlabelled = f"{self.train}:unlabelled"
        self._fingerprint = functools.cache(sources.fingerprint)  # of a data set that many runs read

    def run(self, branch: str, rung: str, variant: str = "") -> Run:
        """A run that was declared."""
        return self.runs[run_name(self.domain, branch, rung, self.seed, variant)]

    def has(self, branch: str, rung: str) -> bool:
        """Whether the ladder has that rung of a branch."""
        return run_name(self.domain, branch, rung, self.seed) in self.runs

    def start(self, branch: str) -> Run:
        """The rung of the ladder from which self-training of a branch starts."""
        return self.run(branch, self.settings.self_training_start)

    def tag(self, experiment: str, *runs: Run, **values) -> None:
        """Say that runs belong to an experiment, and where in it, as plain values."""
        self.tags += [Tag(experiment, run.name, values) for run in runs]

    def add(
        self,
        kind: str,
        branch: str,
        rung: str,
        cls: type,
        section: str,
        parents: Mapping[str, Run],
        data: Iterable[str],
        *,
        variant: str = "",
        where: str | None = None,
        **values,
    ) -> Run:
        """Declare a run of a kind; branch, rung and variant are parts of its name.

        Parameters
        ----------
        cls : dataclass
            Its spec.
        section : str
            Settings of the domain that the spec is read from; "" for none.
        parents : mapping of role to Run
        data : iterable of str
            Data sets whose fingerprints enter the key.
        where : str, optional
            Key path of `values`, for messages; that of the section by default.
        **values
            Fields of the spec beside or instead of those of the section.
        """
        settings = self.settings
        baseline = settings.instance_baseline if branch == "instance" else settings.semantic_baseline
        fields = {
            **over_baseline(cls, baseline, getattr(settings, section) if section else {}),
            "label_set": settings.label_set,
            "compute": dict(self.compute),
            "seed": self.seed,
            **({"validation": self.val} if "validation" in cls.__dataclass_fields__ else {}),
            **values,
        }
        where = f"{self.where}: {f'{self.domain}.{section or kind}' if where is None else where}"
        try:
            run = Run(
                name=run_name(self.domain, branch, rung, self.seed, variant),
                kind=kind,
                spec=from_mapping(cls, fields, where=where),
                parents=tuple(parents.items()),
                data=tuple(self._fingerprint(name) for name in data) + _weights(fields),
                domain=self.domain,
                branch=branch,
                rung=rung,
                variant=variant,
            )
        except ProfileError:
            raise
        except ValueError as error:  # a name in the profile that cannot be a folder
            raise ProfileError(f"{where}: {error}") from error
        if run.name in self.runs:
            raise ProfileError(f"{where}: run {run.name} is declared twice; expected settings that differ")
        self.runs[run.name] = run
        return run

    @property
    def has_oracle(self) -> bool:
        """Whether the ladder of this seed has a rung that learns from labels of the target."""
        return self.settings.oracle and self.seed in (self.settings.oracle_seeds or (self.seed,))

    def oracle_budget(self, branch: str) -> dict[str, int]:
        """Iterations of an oracle where budgets are equal: those of baseline and self-training together.

        A self-trained network has had both. {} where the profile leaves oracles those of the baseline.
        """
        settings, iterations = self.settings, 0
        if not settings.equal_budgets:
            return {}
        for section in STAGES[branch]:
            fields = {**getattr(settings, STAGES[branch][0]), **getattr(settings, section)}
            found = {name: value for name, value in fields.items() if name == "iterations"}
            where = f"{self.where}: {self.domain}.{section}"
            iterations += from_mapping(Budget, found, where=where).iterations
        return {"iterations": iterations}

    def semantic_baseline(self, rung: str, labelled: str, variant: str = "", **values) -> Run:
        """Cross-entropy on a labelled data set: source-only, or oracle."""
        if rung == "oracle":
            values = {**self.oracle_budget("semantic"), **values}
        return self.add(
            "semantic_baseline", "semantic", rung, BaselineSpec, "semantic_baseline", {},
            (labelled, self.val), variant=variant, source=labelled, **values,
        )  # fmt: skip

    def semantic_batch_norm(self, rung: str, start: Run, source: str, variant: str = "", **values) -> Run:
        """ABN or AdaBN of a semantic network."""
        return self.add(
            "semantic_batch_norm", "semantic", rung, SemanticBatchNormSpec, "batch_norm", {"start": start},
            (source, self.unlabelled, self.val), variant=variant, source=source if rung == "abn" else None,
            target=self.unlabelled, **values,
        )  # fmt: skip

    def transfer(self, rung: str, start: Run, variant: str = "") -> Run:
        """Scores of a semantic network of another domain, which further rungs can start from."""
        return self.add(
            "transfer", "semantic", rung, TransferSpec, "", {"start": start}, (self.val,), variant=variant,
            network=to_plain(start.spec.network),
        )  # fmt: skip

    def self_training(
        self, rung: str, start: Run, source: str, variant: str = "", *,
        parents: Mapping[str, Run] | None = None, target: str | None = None,
        data: Iterable[str] = (), **values,
    ) -> Run:  # fmt: skip
        """SAC self-training, or with target weight 0 its control."""
        target = target or self.unlabelled
        return self.add(
            "self_training", "semantic", rung, SelfTrainingSpec, "self_training",
            {"start": start, **(parents or {})}, (source, target, self.val, *data), variant=variant,
            source=source, target=target, **values,
        )  # fmt: skip

    def instance_baseline(
        self, rung: str, labelled: str, selection: str, semantic: Run, variant: str = "", **values
    ) -> Run:
        """Embedding losses on a labelled data set, and the choice of clustering settings."""
        if rung == "oracle":
            values = {**self.oracle_budget("instance"), **values}
        return self.add(
            "instance_baseline", "instance", rung, InstanceBaselineSpec, "instance_baseline",
            {"semantic": semantic}, (labelled, selection), variant=variant, source=labelled,
            selection=selection, **values,
        )  # fmt: skip

    def instance_batch_norm(self, rung: str, start: Run, variant: str = "") -> Run:
        """ABN or AdaBN of an embedding network."""
        source = self.settings.instance_source
        return self.add(
            "instance_batch_norm", "instance", rung, InstanceBatchNormSpec, "instance_batch_norm",
            {"start": start}, (source, self.unlabelled), variant=variant,
            source=source if rung == "abn" else None, target=self.unlabelled,
        )  # fmt: skip

    def instance_self_training(
        self, rung: str, variant: str = "", *, start: Run | None = None, clustering: Run | None = None,
        semantic: Run | None = None, parents: Mapping[str, Run] | None = None, target: str | None = None,
        data: Iterable[str] = (), **values,
    ) -> Run:  # fmt: skip
        """Self-training on clustered instances, or with source share 1 its control.

        It starts where the ladder's does, with the clustering of source-only embeddings, inside the masks of
        the self-trained network, where nothing else is given.
        """
        source, target = self.settings.instance_source, target or self.unlabelled
        own = {
            "start": start or self.start("instance"),
            "clustering": clustering or self.run("instance", "source_only"),
            "semantic": semantic or self.run("semantic", "self_trained"),
        }
        return self.add(
            "instance_self_training", "instance", rung, InstanceSelfTrainingSpec, "instance_self_training",
            {**own, **(parents or {})}, (source, target, *data), variant=variant, source=source,
            target=target, **values,
        )  # fmt: skip

    def semantic_scores(
        self, rung: str, semantic: Run, variant: str = "", *, validation: str | None = None, **values
    ) -> Run:
        """Scores of a network that another run trained."""
        validation = validation or self.val
        return self.add(
            "semantic_scores", "semantic", rung, SemanticScoresSpec, "", {"semantic": semantic},
            (validation,), variant=variant, validation=validation, **values,
        )  # fmt: skip

    def panoptic(
        self, rung: str, semantic: Run, instance: Run, variant: str = "", *, clustering: Run | None = None,
        cleanup: Run | None = None, validation: str | None = None, **values,
    ) -> Run:  # fmt: skip
        """Scores of a semantic and an instance network together, clustered like source-only embeddings."""
        chosen = {} if cleanup is None else {"cleanup": cleanup}
        clustering, validation = clustering or self.run("instance", "source_only"), validation or self.val
        return self.add(
            "panoptic", "panoptic", rung, PanopticSpec, "panoptic",
            {"semantic": semantic, "instance": instance, "clustering": clustering, **chosen}, (validation,),
            variant=variant, validation=validation, **values,
        )  # fmt: skip

    def classical(
        self, rung: str, algorithm: str, masks: str, semantic: Run | None = None, variant: str = "", **values
    ) -> Run:
        """Scores of instances without embeddings, in masks of Otsu's threshold or of a network."""
        settings, label_set = self.settings, LABEL_SETS[self.settings.label_set]
        if (len(label_set.thing_ids), len(label_set.stuff_ids)) != (1, 1):
            raise ProfileError(
                f"{self.where}: {self.domain}.classical: expected null for the label set {label_set.name!r}, "
                "which has more than one thing and one stuff class, found settings"
            )
        return self.add(
            "classical", "panoptic", rung, ClassicalSpec, "classical",
            {} if semantic is None else {"semantic": semantic}, (self.val, settings.instance_selection),
            variant=variant, selection=settings.instance_selection,
            n_selection=settings.instance_baseline["n_selection"], masks=masks, algorithm=algorithm,
            merge_rules=settings.panoptic["merge_rules"], n_samples=settings.panoptic["n_samples"], **values,
        )  # fmt: skip


def over_baseline(cls: type, baseline: Mapping, section: Mapping) -> dict:
    """Settings of a section; what it does not say of the spec `cls` is as in the baseline of its branch.

    That holds inside a setting, too: `weights: {consistency: 0.5}` changes one weight.
    """
    shared = {name: value for name, value in baseline.items() if name in cls.__dataclass_fields__}
    inner = {
        name: {**shared[name], **value}
        for name, value in section.items()
        if isinstance(value, Mapping) and isinstance(shared.get(name), Mapping)
    }
    return {**shared, **section, **inner}


def _weights(fields: Mapping) -> tuple[str, ...]:
    """Fingerprints of the files with the pre-trained weights of a spec's network."""
    network = fields.get("network") or {}
    network = network.get("semantic", network)  # of a shared one
    encoder = network.get("encoder") or {}
    return weights_fingerprint(encoder.get("weights")) + weights_fingerprint(fields.get("start"))


def declare_ladder(grid: Grid) -> None:
    """The rungs of both branches, their panoptic scores, and what the settings ask for beside them."""
    settings = grid.settings
    source = settings.semantic_source
    start = grid.semantic_baseline("source_only", source)
    oracle = grid.semantic_baseline("oracle", grid.train) if grid.has_oracle else None
    semantic = _semantic_rungs(grid, start, oracle)
    instance = {}
    trained = {"source_only": (settings.instance_source, settings.instance_selection)}
    if grid.has_oracle:
        trained["oracle"] = grid.train, grid.train
    for rung, (labelled, selection) in trained.items():
        instance[rung] = grid.instance_baseline(rung, labelled, selection, semantic[rung])
    for rung in BATCH_NORM_RUNGS[1:]:
        instance[rung] = grid.instance_batch_norm(rung, instance["source_only"])
    for rung in ("control", "self_trained"):
        values = {"source_share": 1.0} if rung == "control" else {}
        instance[rung] = grid.instance_self_training(rung, semantic=semantic[rung], **values)

    ladder = f"{grid.domain} ladder"
    tag_rungs(grid, ladder, semantic, instance, panoptic_rungs(grid, semantic, instance))
    if settings.classical is not None:
        for rung, algorithm in OTSU_RUNGS.items():
            grid.tag(ladder, grid.classical(rung, algorithm, "otsu"))
        scored = {"scored": "teacher" if settings.score_teachers else "student"}
        for variant, rung in (("source_only", "source_only"), ("", "self_trained")):
            masks = ("watershed", "predicted", semantic[rung], variant)
            grid.tag(ladder, grid.classical(MASK_WATERSHED, *masks, **scored))
    if settings.gap is not None:
        for rung in GAP_RUNGS:
            parents = {"semantic": semantic[rung]}
            grid.tag("gap", grid.add("gap", "gap", rung, GapSpec, "gap", parents, (grid.unlabelled,)))
    if settings.instance_variants is not None and grid.seed in (settings.variant_seeds or (grid.seed,)):
        _declare_embeddings(grid)


def panoptic_rungs(
    grid: Grid, semantic: Mapping[str, Run], instance: Mapping[str, Run], variant: str = ""
) -> dict[str, Run]:
    """{rung: scores of both branches}, also of the teachers where the settings say so.

    Teachers of instances are scored here alone.
    """
    found = {}
    for rung in (rung for rung in RUNGS if rung in instance):
        clustering = instance["oracle" if rung == "oracle" else "source_only"]
        found[rung] = grid.panoptic(rung, semantic[rung], instance[rung], variant, clustering=clustering)
    if grid.settings.score_teachers:
        networks = semantic["self_trained"], instance["self_trained"]
        options = {"clustering": instance["source_only"], "scored": "teacher"}
        found[TEACHER] = grid.panoptic(TEACHER, *networks, variant, **options)
    return found


def tag_rungs(grid: Grid, experiment: str, *branches: Mapping[str, Run]) -> None:
    """Say that the rungs of some branches belong to an experiment, in the order of tables."""
    for rung in WITH_TEACHER:
        grid.tag(experiment, *(runs[rung] for runs in branches if rung in runs))


def declare_target_ladder(grid: Grid, source_only: Run, label_set: str) -> None:
    """The semantic branch on a further target, from the source-only network of the main domain.

    `label_set`: name of the classes of the target, which its oracle learns.
    """
    oracle = grid.semantic_baseline("oracle", grid.train, label_set=label_set) if grid.has_oracle else None
    runs = _semantic_rungs(grid, grid.transfer("source_only", source_only), oracle)
    tag_rungs(grid, f"{grid.domain} ladder", runs)


def _semantic_rungs(grid: Grid, source_only: Run, oracle: Run | None) -> dict[str, Run]:
    """{rung: run of the semantic branch}."""
    settings, source = grid.settings, grid.settings.semantic_source
    found = {"source_only": source_only} | ({} if oracle is None else {"oracle": oracle})
    for rung in BATCH_NORM_RUNGS[1:]:
        found[rung] = grid.semantic_batch_norm(rung, source_only, source)
    for rung in ("control", "self_trained"):
        values = {"target_weight": 0.0} if rung == "control" else {}
        found[rung] = grid.self_training(rung, grid.start("semantic"), source, **values)
    if settings.score_teachers:
        found[TEACHER] = grid.semantic_scores(TEACHER, found["self_trained"], scored="teacher")
    return found


def _declare_embeddings(grid: Grid) -> None:
    """Embedding networks side by side: that of the ladder, and those of the section `instance_variants`.

    Each is trained on the source and scored inside the same masks, on the target and on the images of the
    source on which its clustering was chosen. Raises ProfileError for a name that is taken.
    """
    settings = grid.settings
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
