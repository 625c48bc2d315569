"""A study that another machine trained for a few minutes comes home in small files, and goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_cli import project  # noqa: F401
from toy_kinds import KINDS, toy_run

from panolib.__main__ import main
from panolib.lab import pack as packing
from panolib.lab.store import Store


@pytest.fixture
def trained(tmp_path):
    parent = toy_run("parent", n_iterations=12)
    store = Store(tmp_path / "there", KINDS)
    store.get(parent)
    return store, parent


def test_what_is_unpacked_is_recorded_and_has_weights(trained, tmp_path):
    store, parent = trained
    missing = toy_run("missing", seed=7)
    packing.pack(store, [parent, missing], tmp_path / "out")
    home = Store(tmp_path / "home", KINDS, train=False)
    assert packing.unpack(home, tmp_path / "out") == ["parent"]
    assert home.load(parent).metrics["norm"] == store.load(parent).metrics["norm"]
    before, after = store.final_state(parent), home.final_state(parent)
    assert after["weight"].dtype == torch.float32 and not torch.equal(before["weight"], after["weight"])
    assert torch.equal(before["weight"].half().float(), after["weight"])
    assert torch.equal(before["bias"], after["bias"])  # one dimension: as it was
    for file in ("curves.csv", "samples/weight.png"):
        assert (home.folder(parent) / file).read_bytes() == (store.folder(parent) / file).read_bytes()


def test_no_part_is_larger_than_the_bound_and_none_may_be_missing(trained, tmp_path, monkeypatch):
    store, parent = trained
    monkeypatch.setattr(packing, "PART_BYTES", 1000)
    parts = packing.pack(store, [parent], tmp_path / "out")
    assert len(parts) > 2 and {part.stat().st_size for part in parts[:-1]} == {1000}
    home = Store(tmp_path / "home", KINDS, train=False)
    assert packing.unpack(home, tmp_path / "out") == ["parent"]
    with pytest.raises(FileExistsError, match=r"runs\.tar\.000: is there already"):
        packing.pack(store, [parent], tmp_path / "out")
    for part in parts[-11:]:  # the end of a tar file is padding
        part.unlink()
    with pytest.raises(packing.BadPack, match=r"cannot be read|expected a part beyond"):
        packing.unpack(home, tmp_path / "out")
    parts[0].unlink()
    with pytest.raises(packing.BadPack, match=r"expected runs\.tar\.000 and all that follow, found runs"):
        packing.unpack(home, tmp_path / "out")
    assert home.load(parent) is not None and not list((tmp_path / "home").glob("tmp*"))


def test_training_stops_by_itself_and_goes_on(project, capsys):  # noqa: F811
    project.runs[2].spec.__dict__["pause_s"] = 0.1
    began = ["train", "--profile", "smoke", "--only", "nuclei-s0", "--workers", "1"]
    assert main([*began, "--minutes", "0.02"]) == 0
    assert "stopped after 0.02 min, 1 runs are missing" in capsys.readouterr().out
    assert not (project.results / "runs" / "nuclei-s0" / "run.json").exists()
    assert main([*began, "--minutes", "5"]) == 0
    assert "stopped" not in capsys.readouterr().out
    assert (project.results / "runs" / "nuclei-s0" / "run.json").exists()


def test_commands_pack_and_unpack(project, tmp_path, capsys):  # noqa: F811
    assert main(["train", "--profile", "smoke", "--only", "*s0", "--workers", "1"]) == 0
    assert main(["pack", "--profile", "smoke", "--out", str(tmp_path / "out")]) == 0
    assert "runs.tar.000" in capsys.readouterr().out
    assert main(["unpack", "--profile", "gpu", str(tmp_path / "out")]) == 0
    assert "3 runs unpacked" in capsys.readouterr().out
    assert main(["unpack", "--profile", "gpu", str(tmp_path / "nowhere")]) == 1
    assert "expected runs.tar.000" in capsys.readouterr().err
