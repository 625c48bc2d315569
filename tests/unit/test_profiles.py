"""A profile is read strictly: what the code does not know is an error that names file, key and value."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import Field

from panolib import profiles
from panolib.config import (
    Count,
    Different,
    PositivePair,
    ProfileError,
    Share,
    canonical_json,
    from_mapping,
    spec,
    to_plain,
)
from panolib.profiles import expand_path, find_profile, load_yaml, profile_names, project_root


@spec
class Network:
    depth: int
    width: float = 1.0
    rates: tuple[int, ...] = (6, 12)


@spec
class Training:
    network: Network
    version: Literal["v2", "v3"]
    size: tuple[int, int]
    weights: str | None
    resume: bool = True
    threshold: int | float = 0.5
    teacher: Network | None = None
    losses: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.size[0] <= 0:
            raise ValueError(f"size: expected positive numbers, found {self.size}")


PLAIN = {
    "network": {"depth": 18, "width": 2, "rates": [1, 2, 3]},
    "version": "v2",
    "size": [128, 256],
    "weights": None,
    "threshold": 3,
    "losses": {"pull": 1},
}


def build(**changes):
    return from_mapping(Training, {**PLAIN, **changes}, where="cpu.yaml")


def test_values_arrive_with_their_types():
    training = build()
    assert training == Training(
        Network(18, 2.0, (1, 2, 3)), "v2", (128, 256), None, True, 3, None, {"pull": 1.0}
    )
    assert type(training.network.width) is float and type(training.threshold) is int
    assert type(training.losses["pull"]) is float
    assert build(teacher={"depth": 10}).teacher == Network(10)


def test_round_trip():
    training = build(teacher={"depth": 10})
    assert from_mapping(Training, json.loads(json.dumps(to_plain(training))), where="run.json") == training
    assert from_mapping(Training, to_plain(training), where="run.json") == training


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"network": {"depht": 18}},
            r"network.depht: unknown key, found with value 18 \(int\); did you mean 'depth'\?",
        ),
        ({"zzz": 1}, r"zzz: unknown key, .*expected one of: network, version, size"),
        ({"network": {"width": 1.0}}, "network.depth: missing key, expected int"),
        ({"network": {"depth": "18"}}, r"network.depth: expected int, found '18' \(str\)"),
        ({"network": {"depth": True}}, r"network.depth: expected int, found True \(bool\)"),
        ({"network": {"depth": 18.0}}, r"network.depth: expected int, found 18.0 \(float\)"),
        ({"network": {"depth": 18, "width": "wide"}}, r"network.width: expected float, found 'wide' \(str\)"),
        (
            {"network": {"depth": 18, "rates": [1, "six"]}},
            r"network.rates\[1\]: expected int, found 'six' \(str\)",
        ),
        (
            {"network": {"depth": 18, "rates": 6}},
            r"network.rates: expected a list, found 6 \(int\)",
        ),
        ({"network": 18}, r"network: expected the keys of Network, found 18 \(int\)"),
        ({"network": None}, r"network: expected the keys of Network, found None"),
        ({"version": "v4"}, r"version: expected 'v2' or 'v3', found 'v4' \(str\)"),
        ({"size": [1, 2, 3]}, r"size: expected a list with 2 or fewer items, found \[1, 2, 3\] \(list\)"),
        ({"size": [0, 2]}, r"Training: size: expected positive numbers, found \(0, 2\)"),
        ({"weights": 3}, r"weights: expected str, found 3 \(int\)"),
        ({"resume": 1}, r"resume: expected bool, found 1 \(int\)"),
        ({"threshold": "x"}, r"threshold: expected int or float, found 'x' \(str\)"),
        ({"teacher": {"depth": None}}, r"teacher.depth: expected int, found None"),
        ({"losses": {"pull": "x"}}, r"losses.pull: expected float, found 'x' \(str\)"),
        ({"losses": {3: 1.0}}, r"losses: expected .*with texts as keys.*, found \{3: 1.0\} \(dict\)"),
    ],
)
def test_errors_name_file_key_value_and_what_was_expected(changes, message):
    with pytest.raises(ProfileError, match=f"^cpu.yaml: {message}"):
        build(**changes)


def test_bare_mappings_are_kept_for_whoever_reads_them():
    @spec
    class Domain:
        data: Mapping
        gap: Mapping | None

    assert from_mapping(Domain, {"data": {"a": [1]}, "gap": None}, where="x").data == {"a": [1]}
    with pytest.raises(ProfileError, match=r"x: gap: expected a mapping, found 3 \(int\)"):
        from_mapping(Domain, {"data": {}, "gap": 3}, where="x")


def test_missing_key_is_named():
    plain = {key: value for key, value in PLAIN.items() if key != "weights"}
    with pytest.raises(ProfileError, match=r"cpu.yaml: weights: missing key, expected str \| None"):
        from_mapping(Training, plain, where="cpu.yaml")


def test_yaml_closes_two_traps(tmp_path):
    file = tmp_path / "cpu.yaml"
    file.write_text("rate: 1e-3\nother: -2.5E+4\nname: e3\nnumber: 12\nsub: {a: 1}\n")
    assert load_yaml(file) == {"rate": 0.001, "other": -25000.0, "name": "e3", "number": 12, "sub": {"a": 1}}
    file.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(ProfileError, match=r"(?s)cpu.yaml: key 'c' is given twice.*line 2"):
        load_yaml(file)


def test_yaml_anchors_and_merges_still_work(tmp_path):
    file = tmp_path / "cpu.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n")
    assert load_yaml(file)["b"] == {"x": 1, "y": 3}


# --- a file that extends another --------------------------------------------------------------------------


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_file_says_only_what_differs(tmp_path):
    write(
        tmp_path,
        below="a: 1\nb: {x: 1, y: {u: 1, v: [1, 2]}, z: 3}\nc: {x: 1}\nd: null\ne: {x: 1}\nf: 1\n",
        above="extends: ./below.yaml\na: 2\nb: {y: {v: [3]}, z: !remove }\nc: !replace {y: 2}\nd: {x: 1}\n"
        "e: null\nf: !remove\n",
        top="extends: above.yaml\nb: {y: {u: 7}}\n",
    )
    above = {"a": 2, "b": {"x": 1, "y": {"u": 1, "v": [3]}}, "c": {"y": 2}, "d": {"x": 1}, "e": None}
    assert load_yaml(tmp_path / "above.yaml") == above
    assert load_yaml(tmp_path / "top.yaml") == above | {"b": {"x": 1, "y": {"u": 7, "v": [3]}}}
    assert type(load_yaml(tmp_path / "above.yaml")["c"]) is dict


def test_a_profile_anywhere_may_extend_one_of_the_project(tmp_path):
    write(tmp_path, mine="extends: cpu\nseeds: [5]\ncity: {semantic_baseline: {optimiser: {lr: 1.0}}}\n")
    cpu, mine = load_yaml(find_profile("cpu")), load_yaml(tmp_path / "mine.yaml")
    cpu["city"]["semantic_baseline"]["optimiser"]["lr"], cpu["seeds"] = 1.0, [5]
    assert mine == cpu


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: cpuu", "extends: profile 'cpuu': expected one of cpu, gpu, gpu_resnet50"),
        ("extends: no/such.yaml", "extends: profile no/such.yaml: expected a YAML file, found no such file"),
        ("extends: null", "extends: profile 'None': expected one of"),
        ("extends: mine.yaml", "extends itself, by mine.yaml -> mine.yaml"),
        ("extends: other.yaml", "extends itself, by mine.yaml -> other.yaml -> mine.yaml"),
        ("extends: base\ncity: {data: {gta: !remove }}", "city.data.gta: expected a key to remove, found"),
        ("a: !remove", "a: expected a key to remove, found none"),
        ("a: !replace 3", "expected a mapping node, but found scalar"),
        ("a: !merge {x: 1}", "could not determine a constructor for the tag '!merge'"),
    ],
)
def test_what_cannot_be_extended_is_one_error(text, message, tmp_path):
    write(tmp_path, mine=text, other="extends: mine.yaml")
    with pytest.raises(ProfileError, match=rf"(?s)mine\.yaml: .*{message}"):
        load_yaml(tmp_path / "mine.yaml")


@pytest.mark.parametrize("name", ["cpu", "gpu", "gpu_resnet50", "paper", "smoke"])
def test_no_profile_repeats_what_it_extends(name):
    def repeated(above, below, path=()):
        for key, value in above.items():
            if type(value) is dict and type(below.get(key)) is dict:  # another class: !replace
                yield from repeated(value, below[key], (*path, key))
            elif value == below.get(key, ...):
                yield ".".join((*path, key))

    profile = find_profile(name)
    says = yaml.load(profile.read_text(), Loader=profiles._StrictLoader)
    extended = load_yaml(find_profile(says["extends"], near=profile))
    assert list(repeated(says, extended)) == []


def test_unreadable_profiles(tmp_path):
    (tmp_path / "cpu.yaml").write_text("a: [1")
    with pytest.raises(ProfileError, match=r"cpu\.yaml"):
        load_yaml(tmp_path / "cpu.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ProfileError, match=r"list.yaml: expected `key: value` lines, found \[1\] \(list\)"):
        load_yaml(tmp_path / "list.yaml")
    with pytest.raises(FileNotFoundError, match=r"gpu\.yaml: no such file; found here: cpu, list"):
        load_yaml(tmp_path / "gpu.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 2023-13-45", "found a value that is none .month must be in 1..12"),
        ("a: " + "9" * 5000, "found a value that is none .Exceeds the limit"),
        ("a: !!int x", "found a value that is none"),
        ("a: !!bool x", "found a value that is none"),
        ("a: !!timestamp x", "found a value that is none"),
        ("? [a, b]\n: 1", "found unhashable key"),
        ("? {a: 1}\n: 1", "found unhashable key"),
        ("a: &x {b: *x}", "found one that holds itself"),
        ("a: " + "[" * 3000 + "]" * 3000, "found one that holds itself or is hundreds of levels deep"),
        ("extends: ~nobody-of-this-name/x.yaml", "found no home folder"),
        (f"extends: {'a' * 300}/x.yaml", "expected a YAML file: File name too long"),
    ],
)
def test_what_is_no_plain_value_is_an_error_of_the_file(text, message, tmp_path):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(ProfileError, match=rf"(?s)odd\.yaml: .*{message}"):
        load_yaml(tmp_path / "odd.yaml")


def test_a_list_that_holds_itself_is_an_error_of_the_file(tmp_path):
    (tmp_path / "odd.yaml").write_text("network: {depth: 1, rates: &x [*x]}")
    mapping = load_yaml(tmp_path / "odd.yaml")["network"]
    with pytest.raises(ProfileError, match=r"odd\.yaml: expected mappings and lists that end"):
        from_mapping(Network, mapping, where="odd.yaml")


def test_canonical_json_has_one_text_per_value():
    assert canonical_json({"b": (1, 2.5), "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert canonical_json(Network(18)) == '{"depth":18,"rates":[6,12],"width":1.0}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_to_plain_names_what_is_not_plain():
    with pytest.raises(TypeError, match=r"spec.rates\[0\]: expected numbers.*found .*Path\('a'\)"):
        to_plain({"rates": (Path("a"),)})


def test_project_root_is_found_from_below(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    below = tmp_path / "notebooks" / "profiles"
    below.mkdir(parents=True)
    assert project_root(below) == tmp_path.resolve()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "another"\n')
    with pytest.raises(FileNotFoundError, match=r"pyproject.toml of panolib"):
        project_root(below)


def test_project_root_is_that_of_the_package_where_the_working_folder_is_in_none(tmp_path, monkeypatch):
    package = project_root(Path(profiles.__file__).parent)
    monkeypatch.chdir(tmp_path)
    assert project_root() == package and find_profile("cpu").is_relative_to(package)
    (tmp_path / "mine.yaml").write_text("extends: cpu\n")
    assert find_profile("mine.yaml") == (tmp_path / "mine.yaml").resolve()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    assert project_root() == tmp_path.resolve()  # the clone in which a user is goes before
    (tmp_path / "pyproject.toml").unlink()
    monkeypatch.setattr(profiles, "PACKAGE", tmp_path / "site-packages" / "panolib")  # no clone
    with pytest.raises(FileNotFoundError, match=r"run from inside the cloned repository, or install the"):
        project_root()


def test_profiles_of_the_project_are_found():
    assert profile_names() == ["cpu", "gpu", "gpu_resnet50", "paper", "smoke"]
    with pytest.raises(ProfileError, match=r"^profile .base.: expected one of cpu, gpu, gpu_resnet50,"):
        find_profile("base")


@spec
class Ranges:
    batch: Count = 1
    share: Share | None = 0.5
    pair: PositivePair = (1.0, 2.0)
    seeds: Annotated[tuple[Count, ...], Field(min_length=1), Different] = (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, r"batch: expected >= 1, found 0 \(int\)"),
        ({"batch": "many"}, r"batch: expected int, found 'many' \(str\)"),
        ({"share": 1.5}, r"share: expected <= 1, found 1.5 \(float\)"),
        ({"share": -1}, r"share: expected >= 0, found -1 \(int\)"),
        ({"share": float("nan")}, r"share: expected a finite number, found nan"),
        ({"share": float("inf")}, r"share: expected a finite number, found inf"),
        ({"pair": [2.0, 1.0]}, r"pair: expected values in rising order, found \[2"),
        ({"pair": [0.0, 1.0]}, r"pair\[0\]: expected > 0, found 0.0"),
        ({"seeds": []}, r"seeds: expected a list with 1 or more items, found \[\]"),
        ({"seeds": [3, 3]}, r"seeds: expected different items, found \[3, 3\]"),
    ],
)
def test_numbers_lie_in_their_range(changes, message):
    with pytest.raises(ProfileError, match=f"^cpu.yaml: {message}"):
        from_mapping(Ranges, changes, where="cpu.yaml")


def test_the_ends_of_a_range_and_none_are_inside():
    values = {"batch": 1, "share": 1, "pair": [2, 2], "seeds": [1, 2]}
    assert from_mapping(Ranges, values, where="x") == Ranges(1, 1.0, (2.0, 2.0), (1, 2))
    assert from_mapping(Ranges, {"share": None}, where="x").share is None


def test_paths_expand(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/disk")
    assert expand_path("~/a") == tmp_path / "a"
    assert expand_path("$DATA/a") == expand_path("${DATA}/a") == Path("/disk/a")
    assert expand_path("a/b") == Path("a/b")
    with pytest.raises(ProfileError, match=r"path '\$NOWHERE/a': variable \$NOWHERE is not set"):
        expand_path("$NOWHERE/a")
