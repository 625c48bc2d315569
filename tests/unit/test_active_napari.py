"""The napari plugin without a screen: its manifest, ten pairs by buttons and keys, wrong folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from ten_pairs import ten_pairs

from panolib.active.session import ANSWERS, NoPairs, PairFolder, open_session, write_pairs
from panolib.profiles import project_root

MANIFEST = project_root() / "panolib" / "active" / "napari.yaml"


@pytest.fixture
def pairs(tmp_path):
    """A folder of ten pairs."""
    session = ten_pairs(tmp_path / "unused.jsonl")
    write_pairs(session._pairs, tmp_path / "pairs")
    return tmp_path / "pairs"


@pytest.fixture(params=["model", "window"])
def viewer(request, monkeypatch):
    """napari without a window, and with one where there is a display with OpenGL (xvfb-run)."""
    pytest.importorskip("napari", reason="napari is an extra: pip install -e '.[napari]'")
    from napari import Viewer
    from napari.components import ViewerModel
    from qtpy.QtWidgets import QApplication

    if request.param == "model":
        if "DISPLAY" not in os.environ:
            monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
        application = QApplication.instance() or QApplication([])
        yield ViewerModel()
        application.processEvents()
        return
    if "DISPLAY" not in os.environ:
        pytest.skip("no display: run it under xvfb-run")
    found = Viewer(show=False)
    yield found
    found.close()


def choices(folder):
    return [answer.choice for answer in open_session(folder).answers.values()]


def test_a_folder_holds_what_was_written(pairs, tmp_path):
    read, session = PairFolder(pairs), ten_pairs(tmp_path / "unused.jsonl")
    assert read.names == [pair.name for pair in session._pairs] and len(read) == 10
    for found, written in zip(read, session._pairs):
        assert found.shown == written.shown and (found.image == written.image).all()
        assert all((a == b).all() for a, b in zip(found.labels, written.labels))
    with pytest.raises(FileExistsError, match=r"pair-0000\.npz: is there already"):
        write_pairs([], pairs)
    with pytest.raises(NoPairs, match=r"expected files pair-0000\.npz"):
        open_session(tmp_path)
    (pairs / "pair-0003.npz").write_bytes(b"nothing")
    with pytest.raises(NoPairs, match=r"pair-0003\.npz: expected a pair"):
        open_session(pairs)


def test_the_manifest_names_the_dock():
    said = yaml.safe_load(MANIFEST.read_text())
    command, widget = said["contributions"]["commands"][0], said["contributions"]["widgets"][0]
    assert widget["command"] == command["id"] == "panolib.pairs"
    module, name = command["python_name"].split(":")
    file = project_root() / f"{module.replace('.', '/')}.py"
    assert f"class {name}(QWidget)" in file.read_text()


def test_npe2_accepts_the_manifest():
    npe2 = pytest.importorskip("npe2", reason="napari is an extra: pip install -e '.[napari]'")
    found = npe2.PluginManifest.from_file(MANIFEST)
    found.validate_imports()
    assert found.name == "panolib" and len(found.contributions.widgets) == 1


def test_ten_pairs_by_buttons_and_keys(viewer, pairs):
    from panolib.active.napari_plugin import PairsDock

    dock = PairsDock(viewer)
    dock.press("1")
    assert dock.text == "Open a folder of pairs." and len(viewer.layers) == 0
    dock.open(pairs)
    assert [layer.name for layer in viewer.layers] == [
        "left: image", "left: objects", "right: image", "right: objects"
    ]  # fmt: skip
    left, right = viewer.layers[1], viewer.layers[3]
    first = PairFolder(pairs)[0]
    assert (left.data == first.labels[0]).all() and (right.data == first.labels[1]).all()
    assert right.translate[1] > first.image.shape[1] and left.contour == 1
    warm = left.colormap.color_dict[1][:3]
    assert warm[0] > warm[2] and not np.allclose(warm, left.colormap.color_dict[2][:3])

    dock.buttons["h"].click()
    assert not left.visible and not right.visible and viewer.layers[0].visible
    dock.buttons["z"].click()
    assert (left.data == first.labels[0]).all(), "a small image is whole in either"
    dock.buttons["h"].click()
    assert left.visible and right.visible

    for key in "1212":
        dock.buttons[key].click()
    assert dock.text.startswith("4 of 10")
    key_on = lambda where, key: where.keymap[_binding(where, key)](where)  # noqa: E731
    for key in "12100":
        key_on(viewer, key)
    viewer.layers.selection.active = left
    key_on(left, "u")
    key_on(left, "u")
    assert dock.text.startswith("7 of 10")
    for key in "212":
        key_on(left, key)
    assert dock.text.startswith("Done: 10 of 10") and not any(layer.visible for layer in viewer.layers)
    assert choices(pairs) == ["teacher"] * 10
    dock.buttons["u"].click()
    assert dock.text.startswith("9 of 10") and all(layer.visible for layer in viewer.layers)


def test_it_says_what_is_wrong_with_a_folder(viewer, tmp_path):
    from panolib.active.napari_plugin import PairsDock

    dock = PairsDock(viewer)
    dock.open(tmp_path)
    assert "expected files pair-0000.npz" in dock.text
    (tmp_path / ANSWERS).write_text("nothing\n")
    write_pairs(ten_pairs(tmp_path / "unused.jsonl")._pairs, tmp_path)
    dock.open(tmp_path)
    assert "answers.jsonl: line 1" in dock.text


def _binding(where, key):
    """The key of a keymap that a pressed key means."""
    return next(binding for binding in where.keymap if str(binding).lower() == key)
