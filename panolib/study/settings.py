"""The sections of a profile, a YAML file of `notebooks/profiles`, and which of them may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from panolib.clustering.algorithms import Algorithm
from panolib.config import (
    Count,
    Different,
    Natural,
    NonNegative,
    Positive,
    PositivePair,
    ProfileError,
    Seed,
    Share,
    from_mapping,
    spec,
)
from panolib.data.readers import DOMAINS
from panolib.data.readers.own import own_section
from panolib.inference.views import SETS
from panolib.profiles import load_yaml, merged
from panolib.training.specs import StudentOrTeacher

Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), Different]
Shares = Annotated[tuple[Share, ...], Field(min_length=1), Different]

# {section that takes some of the seeds: fields that hold them}; instead of "seeds" a file may say "n_seeds",
# also of a ladder and of its `shared`
_SEEDED = ("detr", "realtime", "peers", "refinement", "objectness", "method", "active", "views")
OWN_SEEDS = {"experiments": ("seeds", "consistency_seeds"), **dict.fromkeys(_SEEDED, ("seeds",))}


class MissingSection(ProfileError):
    """Something needs a section that the profile leaves out."""


@spec
class Domain:
    """A ladder: a pair of source and target data, and the settings of every kind of run on it.

    The settings are mappings checked against the spec class of each kind when a run is built;
    `data` is checked against the class of the domain's data sets.
    """

    data: Mapping
    label_set: str | None  # null: that of the data
    semantic_source: str
    instance_source: str
    instance_selection: str
    target: str
    semantic_baseline: Mapping
    batch_norm: Mapping
    self_training: Mapping
    instance_baseline: Mapping
    instance_batch_norm: Mapping
    instance_self_training: Mapping
    panoptic: Mapping
    gap: Mapping | None = None
    self_training_start: Literal["abn", "adabn"] = "adabn"  # rung from which both branches go on; SAC: abn
    equal_budgets: bool = False  # oracles get the iterations of baseline and self-training together
    score_teachers: bool = False  # a rung of its own beside the student's
    shared: Mapping | None = None  # a ladder of networks for both branches, `shared.Shared`
    instance_variants: Mapping[str, Mapping] | None = None  # of the instance baseline: what differs
    validation: str | None = None  # data set of the scores; null: val of the target
    oracle: bool = True  # a rung that learns from labels of the target
    cleanup: Mapping | None = None  # choices of `cleanup.CleanupSpec`
    classical: Mapping | None = None  # controls without embeddings, `ClassicalSpec`: the settings to try
    seeds: Seeds | None = None  # those of the profile that this ladder takes; null: all
    variant_seeds: Seeds | None = None  # of these, those of `instance_variants`; null: all
    oracle_seeds: Seeds | None = None  # of these, those of the oracle, where there is one; null: all


Workflow = Literal["all", "icm", "base", "ccm"]
ShorterTraining = Literal["semantic_baseline", "self_training", "instance_self_training"]


@spec
class Experiments:
    """Settings of the thesis's experiments beside the ladder; `experiments` says what each is for."""

    seeds: tuple[int, ...]
    sources: Mapping[str, str]  # name -> data set, beside MIX
    networks: Mapping[str, Mapping]  # name -> what differs from the network of the semantic baseline
    monitor_interval: Count  # iterations
    monitor_images: Count  # of every data set
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1), Different]
    epsilon_0: NonNegative  # of the decaying rings
    epsilon_tau: Positive  # iterations
    shares: Mapping[Workflow, Shares]  # of the source, in a batch; a workflow that is not named is left out
    truth_shares: Shares  # of wrong mask regions that are corrected
    painted_share: Share  # of the true instances that guide the semantic branch
    consistency_weights: Annotated[tuple[NonNegative, ...], Field(min_length=1), Different]
    consistency_seeds: tuple[int, ...]
    kernels: Annotated[tuple[Natural, ...], Different]  # of the morphology; 0: none
    crop_scale: PositivePair  # of the side test with smaller source crops
    clustering_cost: Mapping  # sizes of the synthetic inputs, `ClusteringCostSpec`
    scored: StudentOrTeacher = "student"  # network of self-trained runs that "threat" runs score
    # iterations of trainings here, where they are fewer than those of the ladder
    shorter: Mapping[ShorterTraining, Count] | None = None
    ablations: Mapping[str, Mapping] | None = None  # name -> what differs from `self_training`

    def __post_init__(self):
        shares = self.shares.get("all", ())
        for key, found, needed, reason in (
            ("algorithms", self.algorithms, "mean_shift_plus", "E3 compares with it"),
            ("kernels", self.kernels, 0, "scores without morphology"),
            ("truth_shares", self.truth_shares, 1.0, "E5 compares with true masks"),
            ("shares: all", shares, 0.0, "E3 compares with it"),
            ("shares: all", shares, 0.25, "E4 and E5 take its network"),
        ):
            if needed not in found:
                raise ValueError(f"{key}: expected {needed!r} among them ({reason}), found {list(found)}")


@spec(kw_only=True)
class InDomains:
    """Of a section whose runs stand beside the ladders of some domains."""

    seeds: tuple[int, ...]
    domains: Annotated[tuple[str, ...], Field(min_length=1), Different]  # those that the profile has
    domain_seeds: Mapping[str, tuple[int, ...]] | None = None  # of these, those that take other seeds; a file
    # says at which places of the profile's they are, from 0

    def __post_init__(self):
        self._check_domains("domain_seeds")

    def _check_domains(self, field: str) -> None:
        for domain in getattr(self, field) or {}:
            if domain not in self.domains:
                known = ", ".join(self.domains)
                raise ValueError(
                    f"{field}: expected some of {known}, found {domain!r} "
                    "(`!remove` takes out what a profile below it says)"
                )

    def takes(self, domain: str, seed: int) -> bool:
        """Whether there are runs of this seed beside the ladder of a domain."""
        return domain in self.domains and seed in self.seeds_of(domain)

    def seeds_of(self, domain: str) -> tuple[int, ...]:
        """The seeds of one of the domains."""
        return tuple((self.domain_seeds or {}).get(domain, self.seeds))


@spec
class Refinement(InDomains):
    """Rounds in which masks and instances refine each other; `refinement` says what is compared."""

    rounds: Count
    semantic_iterations: Count  # of a round, in every exchange
    instance_iterations: Count


@spec
class MethodDomain:
    """How long the parts of the recipe train in a domain, and which it leaves out."""

    semantic_iterations: Count
    instance_iterations: Count | None = None  # null: semantic parts alone
    without: tuple[str, ...] = ()


@spec
class Method(InDomains):
    """The parts of the recipe, {name: what differs from the domain's self-training of that branch}.

    `method` adds `none` of them and `all` of them, which is why no two parts of a branch change one setting.
    """

    domains: Annotated[Mapping[str, MethodDomain], Field(min_length=1)]  # those that the profile has
    semantic: Annotated[Mapping[str, Mapping], Field(min_length=1)]
    instance: Annotated[Mapping[str, Mapping], Field(min_length=1)]
    instance_seeds: Mapping[str, tuple[int, ...]] | None = None  # as `domain_seeds`, of parts with instances

    def __post_init__(self):
        super().__post_init__()
        self._check_domains("instance_seeds")
        known = [*self.semantic, *self.instance]
        for name in known:
            if name in ("none", "all") or known.count(name) > 1:
                raise ValueError(
                    f"semantic, instance: expected a name of its own for each part, found {name!r}"
                )
        for parts in (self.semantic, self.instance):
            changed = [key for part in parts.values() for key in part]
            for key in changed:
                if changed.count(key) > 1:
                    raise ValueError(f"semantic, instance: expected one part that changes {key!r}, found two")
        for domain, own in self.domains.items():
            for name in own.without:
                if name not in known:
                    raise ValueError(
                        f"domains.{domain}.without: expected some of {', '.join(known)}, found {name!r}"
                    )

    def seeds_with_instances(self, domain: str) -> tuple[int, ...]:
        """Of the seeds of a domain, those of parts of the instance branch and of both branches."""
        return tuple((self.instance_seeds or {}).get(domain, self.seeds_of(domain)))


@spec
class ViewsDomain:
    """Sets of views (`inference.views.SETS`), and the data set of the source on which one may be chosen."""

    views: Annotated[tuple[Literal[tuple(SETS)], ...], Field(min_length=1), Different]
    selection: str


@spec(kw_only=True)
class SeveralViews(InDomains):
    """Networks that see several views of every image they are scored on; `study.views` says which runs."""

    domains: Annotated[Mapping[str, ViewsDomain], Field(min_length=1)]  # those that the profile has


@spec
class Profile:
    """One YAML file. Sections with a default may be left out; nothing then asks for their runs.

    The section of a domain (`data.readers`) bears its name, one on a user's own data (`readers.own`) any.
    It is a ladder (`Domain`), or gives the data of a further target, on which networks of the main domain
    are adapted and scored. In such a section `ladder` says what its rungs of the semantic branch do
    otherwise than those of the main domain, at any depth.
    """

    description: str
    seeds: Seeds
    compute: Mapping
    ladders: Mapping[str, Domain]  # by domain, the main one first
    targets: Mapping[str, Mapping]  # data of further targets, by domain
    target_ladders: Mapping[str, Domain]  # of some of them, from the main network
    main: str = "city"  # domain of the thesis's experiments, DETR, real-time adaptation and benchmarks
    experiments: Experiments | None = None
    detr: Mapping | None = None  # DETR-panoptic, `detr.runs.DetrSettings`
    performance: Mapping | None = None  # sizes of the inputs of `bench`
    realtime: Mapping | None = None  # notebook 09, `realtime.runs.Realtime`
    peers: Mapping | None = None  # torch-em on nuclei, `mean_teacher.runs.PeerSettings`
    refinement: Refinement | None = None  # notebook 13
    objectness: Mapping | None = None  # notebook 11, `objectness.ObjectnessSettings`
    method: Method | None = None  # notebook 16
    views: SeveralViews | None = None  # notebook 16
    active: Mapping | None = None  # notebook 12, `active.ActiveSettings`

    def left_out(self) -> tuple[str, ...]:
        """Names of the sections that are not there."""
        domains = [name for name in DOMAINS if name not in (*self.ladders, *self.targets)]
        return (*domains, *(field.name for field in fields(self) if getattr(self, field.name) is None))

    @property
    def city(self) -> Domain:
        """The ladder of the rendered city, or of the real data sets in its formats."""
        return self.ladders["city"]

    def data_sections(self, where: str) -> dict[str, tuple[str, Mapping]]:
        """{domain: (where its data settings stand, these settings)}; see `data.domains.open_domains`."""
        ladders = {name: (f"{where}: {name}.data", section.data) for name, section in self.ladders.items()}
        return ladders | {name: (f"{where}: {name}", section) for name, section in self.targets.items()}


def read_profile(path: Path) -> Profile:
    """A checked profile.

    Seeds stand in one place, the key `seeds`. A section says how many of them it takes, the first ones
    (`n_seeds`), or which (`seeds`), all if it does not say; and of a domain, at which places they stand
    (`domain_seeds`, `instance_seeds`; those beyond the last one do not count).

    Raises
    ------
    ProfileError
        Naming file, key path, value found and what was expected.
    """
    mapping, where = load_yaml(path), path.name
    seeds = from_mapping(_AllSeeds, {k: v for k, v in mapping.items() if k == "seeds"}, where=where).seeds
    for name, own in OWN_SEEDS.items():
        if isinstance(mapping.get(name), Mapping):
            mapping[name] = _section_seeds(mapping[name], own, seeds, f"{where}: {name}")
    for field in ("ladders", "targets", "target_ladders"):
        if field in mapping:
            raise ProfileError(f"{where}: {field}: unknown key, expected a section for each domain")
    main = mapping.get("main", Profile.main)
    if not isinstance(main, str):
        raise ProfileError(f"{where}: main: expected the name of a section, found {main!r}")
    if main not in mapping:
        raise ProfileError(f"{where}: {main}: missing key, expected the keys of Domain")
    mapping = {name: _ladder_seeds(section, seeds, f"{where}: {name}") for name, section in mapping.items()}
    own = [name for name, section in mapping.items() if _is_own(section)]
    domains = {name: mapping.pop(name) for name in dict.fromkeys((main, *DOMAINS, *own)) if name in mapping}
    for name in own:
        domains[name] = _own_ladder(domains, name, where)
    ladders, targets, on_targets = {}, {}, {}
    for name, section in domains.items():
        if section is None and name != main:
            continue
        if not isinstance(section, Mapping):
            raise ProfileError(f"{where}: {name}: expected the keys of Domain, found {section!r}")
        if name == main or "target" in section:
            ladders[name] = from_mapping(Domain, section, where=f"{where}: {name}")
        else:
            targets[name] = {key: value for key, value in section.items() if key != "ladder"}
            if section.get("ladder") is not None:
                changed = {"target": name, "gap": None, **section["ladder"]}
                settings = merged(domains[main], changed, where, f"{name}.ladder")
                on_targets[name] = from_mapping(Domain, settings, where=f"{where}: {name}.ladder")
    return replace(
        from_mapping(Profile, {**mapping, "ladders": {}, "targets": {}, "target_ladders": {}}, where=where),
        ladders=ladders,
        targets=targets,
        target_ladders=on_targets,
    )


def _is_own(section: Any) -> bool:
    """Whether a section is a ladder on a user's own data."""
    data = section.get("data") if isinstance(section, Mapping) else None
    return isinstance(data, Mapping) and "source" in data


def _own_ladder(domains: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """A section on own data over that of the domain that it is `like`, but for the data of that."""
    section = own_section(domains[name])
    like = section.pop("like", None)
    if like is None:
        return section
    if not isinstance(domains.get(like), Mapping) or _is_own(domains[like]):
        known = [other for other in DOMAINS if isinstance(domains.get(other), Mapping)]
        raise ProfileError(f"{where}: {name}.like: expected one of {', '.join(known)}, found {like!r}")
    return {**merged(domains[like], section, where, name), "data": section["data"]}


@spec
class _AllSeeds:
    seeds: Seeds


@spec
class _Places:
    places: Annotated[tuple[Natural, ...], Field(min_length=1), Different]


@spec
class _OwnSeeds:
    n_seeds: Count | None = None
    n_consistency_seeds: Count | None = None
    n_variant_seeds: Count | None = None
    n_oracle_seeds: Count | None = None


def _with_seeds(section: Mapping[str, Any], names: tuple[str, ...], seeds: tuple, where: str) -> dict:
    """A section with the seeds that it takes, where it says which ones, or how many of the first."""
    found = dict(section)
    for name in names:
        if f"n_{name}" in found:
            if name in found:
                raise ProfileError(f"{where}: expected n_{name} or {name}, found both")
            number = {f"n_{name}": found.pop(f"n_{name}")}
            n = getattr(from_mapping(_OwnSeeds, number, where=where), f"n_{name}")
            found[name] = list(seeds[:n])
        given = found.get(name)
        if given is None:
            continue
        if not isinstance(given, list | tuple) or not given or any(seed not in seeds for seed in given):
            expected = f"expected some of the profile's seeds, {list(seeds)}"
            raise ProfileError(f"{where}: {name}: {expected}, found {given!r}")
    return found


def _section_seeds(section: Mapping[str, Any], names: tuple[str, ...], seeds: tuple, where: str) -> dict:
    """A section beside ladders with its seeds, all if it does not say, and with those of its domains."""
    found = _with_seeds(section, names, seeds, where)
    found |= {name: list(seeds) for name in names if found.get(name) is None}
    for key in ("domain_seeds", "instance_seeds"):
        if isinstance(found.get(key), Mapping):
            of_domains = [(d, _at(at, seeds, f"{where}: {key}.{d}")) for d, at in found[key].items()]
            found[key] = {domain: list(there) for domain, there in of_domains if there}
    return found


def _ladder_seeds(section: Any, seeds: tuple, where: str) -> Any:
    """A section with the seeds of its ladder, where it is one, and of what is beside that."""
    if not isinstance(section, Mapping):
        return section
    found = _with_seeds(section, ("seeds", "variant_seeds", "oracle_seeds"), seeds, where)
    for name in ("ladder", "shared"):
        if name in found:
            found[name] = _ladder_seeds(found[name], seeds, f"{where}.{name}")
    return found


def _at(places: Any, seeds: tuple, where: str) -> tuple:
    """The seeds at these places of the profile's, from 0; those beyond the last one are left out."""
    try:
        return tuple(seeds[place] for place in _Places(tuple(places)).places if place < len(seeds))
    except (TypeError, ValueError) as error:
        expected = "expected places in the list of seeds, from 0"
        raise ProfileError(f"{where}: {expected}, found {places!r}") from error
