"""The packages of the study: exact versions in constraints.txt, installed, compared, and written anew.

`make install` and `make lock` call ``python -m panolib.lab.packages``; installing works in a new environment
that holds nothing but pip.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOCK, CONDA = ROOT / "constraints.txt", ROOT / "environment.yml"
CONDA_NAMES = {"torch": "pytorch", "dask": "dask-core"}
OF_THE_PROJECT = ("panolib", "dev")  # and its extra with everything that the tests need
PIP = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
# How pip names what it cannot install; the last two are packages without a wheel for this machine.
REFUSED = (
    r"no matching distributions available for your environment:\n((?: {4}\S+\n)+)",
    r"No matching distribution found for (\S+)",
    r"The user requested \(constraint\) (\S+)",
    r"Failed to build '(\S+?)'",
    r"Failed to build installable wheels for some pyproject.toml based projects \((.+?)\)",
)


def normalised(name: str) -> str:
    """The name of a package as indexes compare it: lower case, with "-" between its words."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(file: Path | None = None) -> dict[str, str]:
    """{package: version} of constraints.txt, or of another such file; empty where there is none.

    Raises ValueError naming a line that does not pin a package to one version.
    """
    file, pins = file or LOCK, {}
    for number, line in enumerate(file.read_text().splitlines() if file.exists() else [], start=1):
        if not (text := line.partition("#")[0].strip()):
            continue
        pin = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", text)
        if pin is None:
            raise ValueError(f"{file}, line {number}: {line!r}, expected a pin such as 'numpy==2.4.6'")
        pins[normalised(pin[1])] = pin[2]
    return pins


def differences(pins: Mapping[str, str]) -> dict[str, str]:
    """{package: installed version} where that is not the pinned one. A build ("2.14.1+cpu") is no difference.

    Packages that are not installed do not count: other systems need other ones.
    """
    found = {}
    for name, version in pins.items():
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.partition("+")[0] != version:
            found[name] = installed
    return found


@functools.cache
def state() -> str:
    """This environment beside constraints.txt, in words: "as locked (1f2e3d4c5b6a)", or what differs."""
    try:
        pins = locked()
    except (OSError, ValueError) as error:  # no reason to lose the record that is being written
        return f"not locked: {error}"
    if not pins:
        return f"not locked: no pins in {LOCK.name}"
    digest = hashlib.sha256(LOCK.read_bytes()).hexdigest()[:12]
    others = ", ".join(f"{name} {found} ({pins[name]})" for name, found in differences(pins).items())
    return f"not as locked ({digest}): {others}" if others else f"as locked ({digest})"


def install(*, latest: bool = False) -> int:
    """Install the project with the versions of constraints.txt, or the newest ones. pip's exit status.

    Where pip cannot have some of the versions, they are named and the newest that fit are taken instead.
    """
    project = ["--editable", f"{ROOT}[{OF_THE_PROJECT[1]}]"]
    if latest:
        return subprocess.call([*PIP, "--quiet", "--upgrade", "--upgrade-strategy", "eager", *project])
    pins, given_up = locked(), []
    print(f"installing the packages of {LOCK.name} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / LOCK.name
        while True:
            file.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
            # for the pins alone pip says at once what it cannot have, and need not look for ways around
            done = _pip("--dry-run", "--no-deps", "--requirement", str(file)) if pins else None
            if done is None or not done.returncode:
                done = _pip("--constraint", str(file), *project)
            names = refused(done.stdout, pins) if done.returncode else []
            if not names:
                break
            given_up += [f"{name}=={pins.pop(name)}" for name in names]
            _shout(f"no {', '.join(given_up)} for this machine; taking the newest versions that fit")
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        return done.returncode
    wanted = locked()
    rows = [f"{name} {found} instead of {wanted[name]}" for name, found in differences(wanted).items()]
    if rows:
        _shout(f"installed {', '.join(rows)}; numbers may differ from the record")
    return 0


def _pip(*arguments: str) -> subprocess.CompletedProcess:
    """One installation by pip, with all that it says in `stdout`."""
    return subprocess.run([*PIP, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def refused(output: str, pins: Mapping[str, str]) -> list[str]:
    """The pinned packages that pip says, in its output, that it cannot install as pinned.

    Those that it cannot find come alone: other pins that it names then may be none of the trouble.
    """
    for pattern in REFUSED:
        words = re.findall(r"[^\s,]+", " ".join(re.findall(pattern, output)))
        names = dict.fromkeys(normalised(word.partition("==")[0]) for word in words)
        if found := [name for name in names if name in pins]:
            return found
    if "ResolutionImpossible" in output or "No matching distribution" in output:
        return list(pins)
    return []


def lock() -> None:
    """Write the versions of this environment into constraints.txt, and into environment.yml what that names.

    Comments at the head of constraints.txt stay.
    """
    pins = dict(sorted(closure(*OF_THE_PROJECT).items()))
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    head = [line for line in lines if line.startswith("#")]
    LOCK.write_text("\n".join([*head, *(f"{name}=={version}" for name, version in pins.items())]) + "\n")
    names = {CONDA_NAMES.get(name, name): version for name, version in pins.items()}

    def pin(line: re.Match) -> str:
        version = names.get(normalised(line[2]))
        return line[0] if version is None else f"{line[1]}{line[2]}=={version}"

    CONDA.write_text(re.sub(r"(?m)^( +- )([A-Za-z0-9._-]+)(==.*)?$", pin, CONDA.read_text()))
    print(f"{LOCK.name}: {len(pins)} packages")


def closure(project: str, extra: str) -> dict[str, str]:
    """{package: installed version} of all that a project with one of its extras needs on this machine.

    Left out is what torch requires on certain systems only, the CUDA libraries and their compiler: torch
    itself says which versions it takes.
    """
    from packaging.requirements import Requirement

    def requirements(name: str, extras: frozenset[str]) -> Iterator[Requirement]:
        for requirement in map(Requirement, metadata.requires(name) or ()):
            marker = requirement.marker
            if normalised(name) == "torch" and "platform_system" in str(marker):
                continue
            if marker is None or any(marker.evaluate({"extra": one}) for one in extras | {""}):
                yield requirement

    waiting, seen = [(project, frozenset({extra}))], set()
    while waiting:
        name, extras = waiting.pop()
        if (normalised(name), extras) not in seen:
            seen.add((normalised(name), extras))
            waiting += [(needed.name, frozenset(needed.extras)) for needed in requirements(name, extras)]
    return {name: metadata.version(name).partition("+")[0] for name, _ in seen if name != normalised(project)}


def _shout(message: str) -> None:
    """A message that nobody overlooks."""
    line = "=" * 100
    print(f"\n{line}\nNOT AS LOCKED in {LOCK.name}: {message}\n{line}\n", file=sys.stderr, flush=True)


def main() -> int:
    """The two commands."""
    parser = argparse.ArgumentParser("python -m panolib.lab.packages", description="Packages of the study.")
    parser.add_argument("command", choices=("install", "lock"))
    parser.add_argument("--latest", action="store_true", help="install the newest versions instead")
    options = parser.parse_args()
    return install(latest=options.latest) if options.command == "install" else lock() or 0


if __name__ == "__main__":
    sys.exit(main())
