"""The lists of packages say the same: pyproject.toml, constraints.txt and environment.yml; `make install`."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from panolib.lab import packages
from panolib.profiles import project_root

ROOT = project_root(Path(__file__).parent)
CONFLICT = """\
ERROR: Cannot install panolib because these package versions have conflicting dependencies.

The conflict is caused by:
    panolib[dev] 0.1.0 depends on filelock>=3.13
    The user requested (constraint) filelock==999
    torch 2.14.1 depends on filelock
    The user requested (constraint) torch==2.14.1
"""
NOT_FOUND = """
Additionally, some packages in these conflicts have no matching distributions available for your environment:
    filelock
    MarkupSafe

To fix this you could try to:
1. loosen the range of package versions you've specified
"""
NOT_LOCKED = ("peers", "bioimages", "napari", "cuda")
ALL = ["filelock", "torch", "markupsafe", "scikit-image"]


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted() -> dict[str, Requirement]:
    """Direct dependencies with their ranges, those of all extras in the lock too."""
    optional = project()["optional-dependencies"].items()
    extras = [line for name, extra in optional if name not in NOT_LOCKED for line in extra]
    found = map(Requirement, project()["dependencies"] + extras)
    return {packages.normalised(each.name): each for each in found if each.name != project()["name"]}


def test_every_direct_dependency_is_locked_within_its_range():
    locked = packages.locked()
    for name, requirement in wanted().items():
        assert name in locked and requirement.specifier.contains(locked[name]), requirement


def test_every_package_is_listed_once():
    names = [packages.normalised(Requirement(line).name) for line in project()["dependencies"]]
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    for listed in (names, [entry for entry in entries if isinstance(entry, str)]):
        assert len(listed) == len(set(listed))


def test_what_is_not_in_the_lock_is_pinned_by_its_extra():
    for line in (line for name in NOT_LOCKED for line in project()["optional-dependencies"][name]):
        (version,) = Requirement(line).specifier
        assert version.operator == "=="


def test_the_lock_pins_packages_of_any_index_and_system():
    text = packages.LOCK.read_text()
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
    assert not re.search(r"://|nvidia|triton|panolib==", text)


def test_conda_environment_holds_the_locked_versions():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in entries if isinstance(entry, str)]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    assert conda[:2] == [f"python{project()['requires-python']}", "pip"] and pip[-1] == "-e ."
    found = dict(entry.split("==") for entry in conda[2:] + pip[:-1])
    locked = packages.locked()
    assert found == {packages.CONDA_NAMES.get(name, name): locked[name] for name in wanted()}


def test_locking_writes_what_is_installed(tmp_path, monkeypatch):
    """Whatever was there; comments stay."""
    for name in ("LOCK", "CONDA"):
        file = tmp_path / getattr(packages, name).name
        file.write_text(getattr(packages, name).read_text().replace("==", "==999."))
        monkeypatch.setattr(packages, name, file)
    with packages.LOCK.open("a") as file:
        file.write("no-longer-needed==1.0\n")
    packages.lock()
    locked = packages.locked()
    assert packages.differences(locked) == {}
    assert {"numpy", "torch", "transformers", "nbval", "ruff", "papermill"} <= set(locked)
    assert not {"no-longer-needed", "panolib", "pip", "triton"} & set(locked)
    assert packages.LOCK.read_text().startswith("# Exact versions")
    written = [packages.LOCK.read_text(), packages.CONDA.read_text()]
    assert "==999." not in "".join(written) and f"- pytorch=={locked['torch']}\n" in written[1]
    packages.lock()
    assert [packages.LOCK.read_text(), packages.CONDA.read_text()] == written


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "numpy @ file:///x", "<<<<<<<", "torch==2.14.1+cpu"])
def test_a_line_that_pins_nothing_is_named(tmp_path, line):
    (tmp_path / "constraints.txt").write_text(f"# head\ntorch==2.14.1\n{line}\n")
    with pytest.raises(ValueError, match=r"constraints.txt, line 3: .*, expected a pin such as"):
        packages.locked(tmp_path / "constraints.txt")


def test_another_build_is_the_same_version(monkeypatch):
    installed = {"torch": "2.14.1+cpu", "numpy": "2.4.5"}
    monkeypatch.setattr(packages.metadata, "version", installed.__getitem__)
    assert packages.differences({"torch": "2.14.1", "numpy": "2.4.6"}) == {"numpy": "2.4.5"}


def test_the_state_is_as_locked_or_names_what_differs(tmp_path, monkeypatch):
    numpy, state = packages.metadata.version("numpy"), packages.state.__wrapped__
    monkeypatch.setattr(packages, "LOCK", tmp_path / "constraints.txt")
    assert state() == "not locked: no pins in constraints.txt"
    packages.LOCK.write_text(f"numpy=={numpy}\nnot-installed==1\n")
    assert state().startswith("as locked (")
    packages.LOCK.write_text("numpy==0.1\nnot-installed==1\n")
    assert state().startswith("not as locked (") and state().endswith(f"): numpy {numpy} (0.1)")
    packages.LOCK.write_text("=======\n")
    assert state().startswith("not locked: ") and "line 1" in state()


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (CONFLICT + NOT_FOUND, ["filelock", "markupsafe"]),
        (CONFLICT, ["filelock", "torch"]),
        ("No matching distribution found for scikit_image==0.26.0\n", ["scikit-image"]),
        ("Failed to build 'markupsafe' when getting requirements to build wheel", ["markupsafe"]),
        ("Failed to build installable wheels for some pyproject.toml based projects (x, torch)", ["torch"]),
        ("ResolutionImpossible: in words of another year", ALL),
        ("No matching distribution found for setuptools>=69", ALL),
        ("Could not install packages due to an OSError: [Errno 28] No space left on device", []),
    ],
)
def test_what_pip_cannot_have_is_read_from_its_output(output, names):
    assert packages.refused(output, dict.fromkeys(ALL, "1")) == names


def test_what_cannot_be_had_is_named_loudly_and_taken_anew(tmp_path, monkeypatch, capfd):
    """pip is called again without the pins that it refused, and with all others."""
    calls = []

    def pip(*arguments):
        """filelock cannot be found, ruff cannot be built."""
        option = "--requirement" if "--dry-run" in arguments else "--constraint"
        pins = packages.locked(Path(arguments[arguments.index(option) + 1]))
        calls.append((option, sorted(pins)))
        output = NOT_FOUND if "filelock" in pins else ""
        if option == "--constraint" and "ruff" in pins:
            output = "Failed to build installable wheels for some pyproject.toml based projects (ruff)"
        return packages.subprocess.CompletedProcess(arguments, int(output != ""), output)

    installed = {name: packages.metadata.version(name) for name in ("filelock", "ruff", "numpy")}
    monkeypatch.setattr(packages, "LOCK", tmp_path / "constraints.txt")
    packages.LOCK.write_text(f"filelock==999\nnumpy=={installed['numpy']}\nruff==0.1\n")
    monkeypatch.setattr(packages, "_pip", pip)
    assert packages.install() == 0
    assert calls == [
        ("--requirement", ["filelock", "numpy", "ruff"]),
        ("--requirement", ["numpy", "ruff"]),
        ("--constraint", ["numpy", "ruff"]),
        ("--requirement", ["numpy"]),
        ("--constraint", ["numpy"]),
    ]
    told = capfd.readouterr().err
    assert "NOT AS LOCKED in constraints.txt: no filelock==999 for this machine; taking the newest" in told
    assert "NOT AS LOCKED in constraints.txt: no filelock==999, ruff==0.1 for this machine; taking" in told
    assert f"filelock {installed['filelock']} instead of 999, ruff {installed['ruff']} instead of 0.1" in told


def test_an_error_that_is_not_about_versions_is_not_hidden(monkeypatch, capfd):
    failed = packages.subprocess.CompletedProcess([], 3, "ERROR: [Errno 28] No space left on device")
    monkeypatch.setattr(packages, "_pip", lambda *_: failed)
    assert packages.install() == 3
    assert "No space left on device" in capfd.readouterr().err


def test_every_profile_states_what_it_is():
    for path in sorted((ROOT / "notebooks" / "profiles").glob("*.yaml")):
        assert path.read_text().startswith(f"# {path.stem}: ")
