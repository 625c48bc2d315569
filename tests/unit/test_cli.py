"""The commands, on a toy study in a project folder of its own."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import nbformat
import numpy as np
import pytest
import tifffile
import yaml
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))
from toy_kinds import KINDS, toy_run, trained

from panolib import commands
from panolib.__main__ import _parser, main
from panolib.config import ProfileError
from panolib.data import images
from panolib.data.errors import DataError
from panolib.data.render import city
from panolib.lab.engine import get_all
from panolib.lab.notebook import NotebookFailed, execute, numbered_notebooks
from panolib.lab.run import MissingRun
from panolib.lab.store import Store
from panolib.log_lines import Lines
from panolib.models.weights import WeightsError
from panolib.profiles import load_yaml, project_root


def write_notebook(path: Path, code: str) -> None:
    """A notebook of two cells: parameters and code."""
    parameters = nbformat.v4.new_code_cell(
        'profile = "cpu"\nretrain = True', metadata={"tags": ["parameters"]}
    )
    kernel = {"name": "some-environment", "display_name": "x", "language": "python"}
    cells = [parameters, nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


class ToyNotebooks(dict):
    left_out: ClassVar = {}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder that looks like the project, with a study of three runs and two notebooks."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "panolib"\n')
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "cache").mkdir()
    for name in ("00_data", "07_results"):
        write_notebook(
            tmp_path / "notebooks" / f"{name}.ipynb", "import os; print(profile, retrain, os.getcwd())"
        )
    parent = toy_run("city-source_only-s0", n_iterations=3)
    runs = [
        parent,
        toy_run("city-self_trained-s0", parent=parent, n_iterations=4),
        toy_run("nuclei-s0", seed=5),
    ]
    prepared = []

    def load(profile, *, train=True):
        results = tmp_path / "results" / profile
        notebooks = {"00_data": (runs[0].name,), "07_results": (runs[1].name, runs[2].name)}
        folders = {"synthia": tmp_path / "cache", "cityscapes": tmp_path / "nowhere"}
        return SimpleNamespace(
            profile_name=profile,
            profile_argument=profile,
            runs={run.name: run for run in runs},
            store=Store(results, KINDS, train=train),
            notebooks=ToyNotebooks(notebooks),
            results=results,
            figures=tmp_path / "figures" / profile,
            prepare_data=lambda **options: prepared.append(options),
            headline=lambda record: f"norm {record.metrics['norm']:.3f}",
            sources={
                "city": SimpleNamespace(folders=folders, available=lambda: True, to_render=dict),
                "nuclei": SimpleNamespace(
                    folders={"nuclei scenes": tmp_path / "cache", "nuclei": tmp_path / "nowhere"},
                    available=lambda: False,
                    to_render=dict,
                ),
                "camvid": SimpleNamespace(folders={"camvid": tmp_path / "streets"}),
            },
        )

    monkeypatch.setattr(commands, "load", load)
    monkeypatch.chdir(tmp_path / "notebooks")
    return SimpleNamespace(
        root=tmp_path, runs=runs, prepared=prepared, results=tmp_path / "results" / "smoke"
    )


def test_help_does_not_wait_for_torch():
    code = """if True:
        import sys
        from panolib.__main__ import _parser, main
        try:
            main(["reproduce", "--help"])
        except SystemExit as end:
            assert end.code == 0
        print(sorted({"torch", "numpy", "pandas", "papermill"} & set(sys.modules)))"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--retrain" in result.stdout and result.stdout.endswith("[]\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["fly"], ["train"], ["train", "--profile", "cpu", "--workers", "0"], ["runs", "--prof", "none"],
        ["predict", "none.png", "--weight", "nuclei", "--out", "out"],  # no option has two names
    ],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "slip", "option"),
    [
        ("predict a.png --weigths nuclei --out b", "--weigths", "--weights"),
        ("predict a.png --weights nuclei --out b --diametr=20", "--diametr", "--diameter"),
        ("adapt --source a --target b --out c --minuts 3", "--minuts", "--minutes"),
    ],
)
def test_a_misspelt_option_is_named_with_what_it_resembles(arguments, slip, option, capsys):
    with pytest.raises(SystemExit):
        main(arguments.split())
    said = capsys.readouterr().err
    assert f"{slip}: did you mean {option}?" in said and f"panolib {arguments.split()[0]} [-h]" in said


def test_runs_lists_state_age_wall_and_headline(project, capsys):
    store = Store(project.results, KINDS)
    store.get(project.runs[0])
    store.get(toy_run("nuclei-s0", seed=6, n_iterations=1))
    before = sorted(project.results.rglob("*"))
    assert main(["runs", "--profile", "smoke"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["run", "kind", "state", "age", "wall", "result"]
    assert lines[1][:3] == ["city-source_only-s0", "toy", "recorded"] and lines[1][-2] == "norm"
    assert lines[2] == ["city-self_trained-s0", "toy", "missing", "-", "-"]
    assert lines[3][:3] == ["nuclei-s0", "toy", "outdated"]
    assert " ".join(lines[-1]) == "smoke: 3 runs, 1 recorded, 1 missing, 1 outdated"
    assert sorted(project.results.rglob("*")) == before  # listing changes nothing


def test_a_damaged_record_hides_no_other_run_and_is_not_trained_over(project, capsys):
    get_all(Store(project.results, KINDS), project.runs)
    file = project.results / "runs" / "city-source_only-s0" / "metrics.json"
    file.write_text("<<<<<<< HEAD\n" + file.read_text())
    capsys.readouterr()
    assert main(["runs", "--profile", "smoke"]) == 1
    listed, error = capsys.readouterr()
    states = [line.split()[2] for line in listed.splitlines()[1:4]]
    assert states == ["damaged", "recorded", "recorded"] and str(file) in listed.splitlines()[1]
    assert error.startswith(f"error: {file}: expected JSON") and "restore" in error
    for command in ("train", "reproduce"):
        assert main([command, "--profile", "smoke", "--workers", "1"]) == 1
        assert f"error: {file}: expected JSON" in capsys.readouterr().err
    assert len(trained(project.results)) == 3 and file.read_text().startswith("<")


def test_train_takes_the_runs_that_fit_and_their_parents(project):
    assert main(["train", "--profile", "smoke", "--only", "city-self*", "--workers", "1"]) == 0
    assert trained(project.results) == ["city-source_only-s0", "city-self_trained-s0"]
    assert [set(call["domains"]) for call in project.prepared] == [{"city"}]  # nuclei stay as they are
    project.prepared.clear()
    assert main(["train", "--profile", "smoke", "--only", "city-self*", "--workers", "1"]) == 0
    assert [set(call["domains"]) for call in project.prepared] == [set()]  # all recorded: nothing is rendered
    with pytest.raises(SystemExit, match=r"--only mars-\*: expected a pattern that fits a run; .*nuclei-s0"):
        main(["train", "--profile", "smoke", "--only", "mars-*"])


def test_train_ends_with_what_can_be_done_next(project, capsys):
    assert main(["train", "--profile", "smoke", "--only", "city-*", "--workers", "1"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [f"2 runs in {project.results / 'runs'}; python -m panolib runs --profile smoke"]
    panoptic = [toy_run(f"city-panoptic-{rung}-s0") for rung in ("source_only", "self_trained", "oracle")]
    panoptic = [replace(run, kind="panoptic", rung=run.name.split("-")[2]) for run in panoptic]
    loaded = SimpleNamespace(results=project.results)
    last = commands._what_next(loaded, panoptic, "my own.yaml").splitlines()[1]
    command = shlex.split(last.partition("python -m panolib ")[2])
    options = vars(_parser().parse_args(command))  # the command line knows all of it
    assert options["run"] == "city-panoptic-self_trained-s0" and options["profile"] == "my own.yaml"
    assert options["command"] == "weights" and options["out"].suffix == ".safetensors"


def test_failed_run_is_one_line_of_error(project, capsys):
    project.runs[2] = toy_run("nuclei-s0", fails_at=1)
    assert main(["train", "--profile", "smoke", "--workers", "1"]) == 1
    error = capsys.readouterr().err
    expected = "error: run 'nuclei-s0' failed with FloatingPointError: non-finite loss at iteration 1"
    assert error.splitlines()[-1].startswith(expected) and "Traceback" not in error
    assert len(trained(project.results)) == 3


def test_bars_of_a_log_file_have_lines_of_their_own():
    """As tqdm writes them: nested, cleared for a message, closed."""
    file = io.StringIO()
    lines = Lines(file)
    with tqdm(total=3, desc="outer", file=lines, mininterval=0) as outer:
        for _ in range(3):
            with tqdm(total=1, desc="inner", position=1, leave=False, file=lines, mininterval=0) as inner:
                inner.update()
            tqdm.write("a message", file=lines)
            outer.update()
    print("first", "\n", "second", file=lines)
    found = file.getvalue()
    assert "\r" not in found and "\x1b" not in found and "\n\n" not in found
    told = [line.partition(":")[0].strip() for line in found.splitlines()]
    assert set(told) == {"outer", "inner", "a message", "first", "second"} and told.count("a message") == 3
    assert "outer: 100%" in found and all(line.strip() for line in found.splitlines())


def test_bug_keeps_its_traceback(project, monkeypatch):
    monkeypatch.setattr(commands, "load", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["runs"])


@pytest.mark.parametrize("number", [28, 30, 21])  # no space, read-only file system, is a directory
def test_what_the_disk_refuses_is_one_line_without_a_traceback(project, monkeypatch, capsys, number):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number), "results/cpu")

    monkeypatch.setattr(commands, "load", refuse)
    assert main(["runs"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.endswith(f"{os.strerror(number)}: 'results/cpu'")


@pytest.mark.parametrize("command", ["data", "train", "reproduce"])
def test_damaged_data_is_one_line_without_a_traceback(project, monkeypatch, tmp_path, capsys, command):
    picture = tmp_path / "cut.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    load = commands.load

    def load_damaged(*arguments, **options):
        loaded = load(*arguments, **options)
        loaded.prepare_data = lambda *_, **__: images.read_image(picture)
        return loaded

    monkeypatch.setattr(commands, "load", load_damaged)
    assert main([command, "--profile", "smoke"]) == 1
    *before, error = capsys.readouterr().err.strip().splitlines()
    assert str(picture) in error and "expected a whole PNG" in error
    assert all(line.startswith("left out") for line in before)


@pytest.mark.parametrize("content", ["", "[1]", "{", "null", "<<<<<<< HEAD"])
def test_damaged_stamp_of_rendered_data_names_the_file(tmp_path, content):
    (tmp_path / "city_train.json").write_text(content)
    with pytest.raises(DataError, match=r"city_train\.json.*expected a JSON object"):
        city.is_written(tmp_path, "cityscapes", split="train", n_images=1, height=64, width=128, seed=0)


def test_profile_in_another_encoding_is_named(tmp_path):
    profile = tmp_path / "mine.yaml"
    profile.write_bytes("seeds: [0]  # schöne".encode("latin-1"))
    with pytest.raises(ProfileError, match=r"mine\.yaml.*utf-8"):
        load_yaml(profile)


def test_weights_that_are_not_there_are_one_line(project, monkeypatch, capsys):
    def load(*args, **kwargs):
        raise WeightsError("weights 'IMAGENET1K_V1': not to be had")

    monkeypatch.setattr(commands, "load", load)
    assert main(["runs"]) == 1
    assert capsys.readouterr().err == "error: weights 'IMAGENET1K_V1': not to be had\n"


def test_interrupt_says_that_nothing_is_lost(project, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "load", interrupted)
    assert main(["runs"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_data_writes_and_lists_folders(project, capsys):
    (project.root / "cache" / "a.png").write_bytes(bytes(2_000_000))
    assert main(["data", "--profile", "smoke"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["synthia", "1", "2.0", str(project.root / "cache")]
    assert lines[2][:3] == ["cityscapes", "not", "here"]
    assert lines[5] == ["camvid", "not", "here", "0.0", str(project.root / "streets")]
    assert len(project.prepared) == 1


def test_reproduce_trains_then_executes_the_notebooks_in_order(project, capsys):
    assert main(["reproduce", "--profile", "smoke", "--workers", "1"]) == 0
    assert trained(project.results) == [
        "city-source_only-s0",
        "city-self_trained-s0",
    ]
    executed = project.results / "executed"
    assert sorted(file.name for file in executed.iterdir()) == ["00_data.ipynb", "07_results.ipynb"]
    output = nbformat.read(executed / "07_results.ipynb", 4).cells[-1].outputs[0].text
    assert output == f"smoke False {project.root / 'notebooks'}\n"
    captured = capsys.readouterr()
    assert captured.err.index("00_data") < captured.err.index("07_results")
    assert (
        "left out, for their data is not on this machine (notebooks/README.md, 'Real data'): nuclei-s0"
        in captured.err
    )
    assert captured.out.startswith("2 runs and 2 notebooks in")


def test_a_notebook_whose_section_is_left_out_is_passed_over_in_one_line(project, monkeypatch, capsys):
    monkeypatch.setattr(
        ToyNotebooks, "left_out", {"07_results": "smoke.yaml: no section 'detr', which it needs"}
    )
    assert main(["reproduce", "--profile", "smoke", "--workers", "1"]) == 0
    assert [file.name for file in (project.results / "executed").iterdir()] == ["00_data.ipynb"]
    assert "left out: smoke.yaml: no section 'detr', which it needs\n" in capsys.readouterr().err
    assert main(["reproduce", "--profile", "smoke", "--notebook", "07"]) == 1
    assert capsys.readouterr().err == "error: smoke.yaml: no section 'detr', which it needs\n"


def test_failing_notebook_stops_with_its_name_and_error(project, capsys):
    write_notebook(project.root / "notebooks" / "00_data.ipynb", "raise ValueError('a wrong folder')")
    assert main(["reproduce", "--profile", "smoke", "--workers", "1"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: 00_data.ipynb, cell [3]: ValueError: a wrong folder; see ")
    assert not (project.results / "executed" / "07_results.ipynb").exists()


def test_killed_retraining_goes_on_and_ends_once(project, monkeypatch):
    done = []

    def fail(notebooks, out_dir, parameters, at_once):
        raise NotebookFailed(notebooks[0].stem)

    command = ["reproduce", "--profile", "smoke", "--notebook", "00", "--retrain", "--workers", "1"]
    Store(project.results, KINDS).get(project.runs[0])
    monkeypatch.setattr(commands, "execute_all", fail)
    assert main(command) == 1
    started = (project.results / "retrain_since").read_text()
    assert abs(float(started) - time.time()) < 60
    monkeypatch.setattr(commands, "execute_all", lambda notebooks, *_, **__: done.extend(notebooks))
    assert main(command) == 0
    assert trained(project.results) == [project.runs[0].name] * 2
    assert [file.stem for file in done] == ["00_data"]
    assert not (project.results / "retrain_since").exists()
    assert main(command) == 0  # a new one
    assert trained(project.results) == [project.runs[0].name] * 3


def test_unknown_notebook_and_unknown_parameter(project, capsys):
    assert main(["reproduce", "--profile", "smoke", "--notebook", "99"]) == 1
    assert "one that begins with '99'; found 00_data, 07_results" in capsys.readouterr().err
    (project.root / "notebooks" / "scratch.ipynb").write_text("{}")
    assert [file.stem for file in numbered_notebooks(project.root / "notebooks")] == ["00_data", "07_results"]
    with pytest.raises(KeyError, match=r"00_data.ipynb declares no parameter \['sede'\]"):
        execute(project.root / "notebooks" / "00_data.ipynb", project.results, {"profile": "cpu", "sede": 3})
    assert not project.results.exists()


def test_sigkill_during_the_command_then_the_command_again(project, tmp_path):
    run = project.runs[0]
    script = tmp_path / "command.py"
    script.write_text(
        "import sys\nsys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\nfrom toy_kinds import get_in_child, toy_run\n"
        "get_in_child(Path(sys.argv[2]), toy_run(sys.argv[3], n_iterations=30, pause_s=0.02))\n"
    )
    command = [sys.executable, str(script), str(Path(__file__).parent), str(project.results), run.name]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    curves = project.results / "work" / run.name / "curves.csv"
    until = time.monotonic() + 60
    while not (curves.exists() and curves.read_text().count("\n") > 5):
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, 9)
    process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert trained(project.results) == [run.name] * 2
    assert not (project.results / "work" / run.name).exists()


def test_advice_names_only_options_that_a_command_has(project, tmp_path):
    """What a missing run advises is a command that trains it, also for a profile that is a path."""
    path = tmp_path / "my profiles" / "x.yaml"
    store = Store(project.results, KINDS, train=False, profile=str(path))
    with pytest.raises(MissingRun) as error:
        store.get(project.runs[0])
    words = shlex.split(re.search(r"`python -m panolib (.*)`", str(error.value))[1])
    options = _parser().parse_args(words)
    assert (options.profile, options.only) == (str(path), project.runs[0].name)
    texts = [file.read_text() for file in Path(commands.__file__).parent.rglob("*.py")]
    advised = {word for text in texts for word in re.findall(r"python -m panolib \w+ [^`\"\n]*", text)}
    for command in advised:
        for option in re.findall(r"--[a-z-]+", command):
            sub = _parser()._subparsers._group_actions[0].choices[command.split()[3]]
            assert option in sub._option_string_actions, command


SMALL = ("camvid", "nuclei", "realtime", "detr", "performance", "experiments")


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, capsys):
    profile = load_yaml(project_root() / "notebooks" / "profiles" / "smoke.yaml")
    small = {name: section for name, section in profile.items() if name not in SMALL}
    small["city"]["data"] |= {name: str(tmp_path / name) for name in ("synthia", "gta5", "cityscapes")}
    path = tmp_path / "dry.yaml"
    path.write_text(yaml.safe_dump(small))
    assert main(["reproduce", "--dry-run", "--profile", str(path), "--notebook", "07"]) == 0
    found = capsys.readouterr()
    assert re.search(r"^city +self_training +2 +2 +40 +[\d.]+ +not measured$", found.out, re.MULTILINE)
    assert (
        "data to be rendered, images: synthia 60, gta5 60, cityscapes/train 48, cityscapes/val 16"
        in found.out
    )
    assert re.search(r"disk: .* GB final weights", found.out) and re.search(r"memory: .* GB for", found.out)
    assert "dry: 1 notebooks" in found.out and "time: not measured" in found.out and not found.err
    assert [file.name for file in tmp_path.iterdir()] == ["dry.yaml"]
    assert not (project_root() / "results" / "dry").exists()

    small["city"]["data"] |= {"embedded": None, "gta5": str(tmp_path / "no such folder")}
    path.write_text(yaml.safe_dump(small))
    assert main(["reproduce", "--dry-run", "--profile", str(path), "--notebook", "07"]) == 1
    found = capsys.readouterr()
    assert re.search(rf"^problem: data: {tmp_path}/no such folder.*$", found.err, re.MULTILINE)
    assert re.search(r"^city +self_training +2 +2 +40 ", found.out, re.MULTILINE)  # the plan stands


def test_a_dry_run_checks_ladders_on_own_data(tmp_path, capsys):
    for folder in ("labelled/images", "labelled/masks", "new"):
        (tmp_path / folder).mkdir(parents=True)
        for i in range(5):
            pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64)
            tifffile.imwrite(tmp_path / folder / f"{i}.tif", pixels // 1024 if "masks" in folder else pixels)
    data = {"source": {"root": str(tmp_path / "labelled")}, "target": {"root": str(tmp_path / "new")}}
    left_out = dict.fromkeys(("city", "camvid", "experiments", "detr", "performance", "realtime"))
    path = tmp_path / "my.yaml"
    my_cells = {"like": "nuclei", "data": data}
    path.write_text(
        yaml.safe_dump({"extends": "smoke", **left_out, "main": "my_cells", "my_cells": my_cells})
    )
    assert main(["reproduce", "--dry-run", "--profile", str(path)]) == 0
    found = capsys.readouterr()
    assert re.search(r"^my_cells +self_training +\d+ +\d+ ", found.out, re.MULTILINE)
    assert re.search(r"^data of my_cells, images: .*source/train 4", found.out, re.MULTILINE)
    assert f"train --profile {path} --only 'my_cells-*' trains them" in found.out
    assert "problem" not in found.err
    (tmp_path / "new").rename(tmp_path / "moved")
    assert main(["reproduce", "--dry-run", "--profile", str(path)]) == 1
    (line,) = re.findall(r"^problem: .*", capsys.readouterr().err, re.MULTILINE)
    assert line.startswith(f"problem: data of my_cells: {tmp_path}/new: no such folder, expected the images")


def test_a_dry_run_counts_what_is_recorded_and_what_that_took(capsys):
    assert main(["reproduce", "--dry-run", "--profile", "cpu", "--notebook", "07"]) == 0
    found = capsys.readouterr().out
    assert (
        re.search(r"\d+ runs, 0 of them to do, 0 iterations", found)
        and "time: every run is recorded" in found
    )
    assert re.search(r"largest peak of a recorded run: [\d.]+ GB in city-", found)
