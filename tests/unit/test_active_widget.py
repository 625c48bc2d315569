"""The widget: its Python side by messages, and in Chromium through JupyterLab, with clicks and keys."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import nbformat
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ten_pairs import scene, ten_pairs

from panolib.active.pictures import (
    DIFFERENT,
    LEAST_PART,
    MARGIN,
    PART,
    SAME,
    outline_colours,
    outlined,
    overlay,
)
from panolib.active.session import Pair
from panolib.active.widget import PairWidget
from panolib.profiles import project_root

NOTEBOOK = '''
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from ten_pairs import ten_pairs
from panolib.active.widget import PairWidget
widget = PairWidget(ten_pairs(Path("answers.jsonl")))
widget
'''


def press(widget, key, name=None):
    message = {"key": key, "name": widget.name if name is None else name}
    widget._handle_custom_msg(message, [])


def test_what_differs_has_a_colour_of_its_own():
    image, labels, joined = scene(0)
    warm = [tuple(colour) for colour in DIFFERENT.tolist()]
    seen = {}
    of = {"right": (labels, joined), "joined": (joined, labels), "same": (labels, labels)}
    for name, (shown, other) in of.items():
        picture = overlay(image, shown, other)
        assert picture.shape == (4 * image.shape[0], 4 * image.shape[1], 3)
        outlined = {c: (picture == c).all(-1) for c in (SAME, *warm)}
        large = labels.repeat(4, axis=0).repeat(4, axis=1)
        seen[name] = {c: set(large[where].tolist()) for c, where in outlined.items() if where.any()}
    assert seen["same"].keys() == {SAME}
    assert [ids for c, ids in seen["joined"].items() if c != SAME] == [{1, 2}], "two parts, one colour"
    assert sorted(ids for c, ids in seen["right"].items() if c != SAME) in ([{1}, {2}], [{2}, {1}])
    assert not seen["right"][SAME] & {1, 2}
    assert (overlay(image, 0 * labels, labels) == image.repeat(4, 0).repeat(4, 1)).all()


def test_neighbours_that_differ_have_different_colours():
    labels = np.zeros((20, 60), int)
    for k in range(1, 7):
        labels[:10, 10 * k - 10 : 10 * k] = k
    joined = np.where(np.isin(labels, (1, 5)), 1, labels)  # 1 and 5 are one: their ids are 4 colours apart
    colours = outline_colours(labels, joined)
    assert (colours[[2, 3, 4, 6]] == SAME).all() and tuple(colours[1]) != tuple(colours[5])


def part_of(first, second):
    """The part of a pair that is shown first."""
    return Pair("image", np.zeros((*first.shape, 3), np.uint8), (first, second), ("a", "b")).part


def test_of_a_large_image_the_part_is_shown_where_both_differ():
    """One object of 1000 x 900 pixels differs: the window holds it, and its middle is near."""
    labels = np.zeros((1000, 900), int)
    labels[100:130, 100:130], labels[700:740, 300:360] = 1, 2
    other = labels.copy()
    other[700:740, 330:360] = 3
    window = part_of(labels, other)
    assert [part.stop - part.start for part in window] == [LEAST_PART, LEAST_PART], "40 x 60 pixels differ"
    rows, columns = window
    assert abs((rows.start + rows.stop) / 2 - 720) < 5 and abs((columns.start + columns.stop) / 2 - 330) < 5
    small = (slice(600, 800), slice(200, 400))
    rows, columns = part_of(labels[small], other[small])  # 100 .. 140, 100 .. 160
    assert (rows.start, rows.stop, columns.start, columns.stop) == (56, 184, 66, 194)
    alike = part_of(labels, labels)
    assert [part.stop - part.start for part in alike] == [PART, PART]
    corner = np.zeros((1000, 900), int)
    corner[:9, -9:] = 1
    rows, columns = part_of(corner, np.zeros_like(corner))
    assert (rows.start, columns.stop) == (0, 900)
    two = other.copy()
    two[720:740, 400:440] = 4
    rows, columns = part_of(labels, two)
    assert rows.stop - rows.start == columns.stop - columns.start == 440 - 300 + 2 * MARGIN
    assert columns.start == 300 - MARGIN, "both are in the part"
    image = np.zeros((1000, 900, 3), np.uint8)
    picture = outlined(image, labels, outline_colours(labels, other), window)
    assert picture.shape == (4 * LEAST_PART, 4 * LEAST_PART, 3)
    seen = {tuple(colour) for colour in np.unique(picture.reshape(-1, 3), axis=0).tolist()}
    assert seen == {(0, 0, 0), tuple(outline_colours(labels, other)[2].tolist())}


def test_zoom_and_outlines_are_no_answers(tmp_path):
    widget = PairWidget(ten_pairs(tmp_path / "answers.jsonl"))
    part, shown = widget.first, widget.shown
    press(widget, "h")
    plain = cv2.imdecode(np.frombuffer(widget.first, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert (plain == scene(0)[0].repeat(4, 0).repeat(4, 1)).all() and widget.first == widget.second
    press(widget, "z")
    press(widget, "h")
    assert widget.first == part and widget.shown == shown + 3, "a small image is whole in either"
    press(widget, "h")
    press(widget, "1")
    assert widget.name == "image 1" and widget.first != widget.second, "a new pair has its outlines"
    assert len(widget.session.answers) == 1


def test_answers_come_by_messages(tmp_path):
    widget = PairWidget(ten_pairs(tmp_path / "answers.jsonl"))
    assert widget.name == "image 0" and widget.progress == "0 of 10"
    before = widget.first
    assert cv2.imdecode(np.frombuffer(before, np.uint8), cv2.IMREAD_COLOR).shape == (384, 512, 3)
    press(widget, "1")
    assert widget.name == "image 1" and widget.first != before and widget.progress.startswith("1 of 10")
    press(widget, "2", name="image 0")  # pressed twice: the second one saw the pair before
    assert widget.name == "image 1"
    press(widget, "u")
    assert widget.name == "image 0" and widget.first == before
    for key in "1212121210":
        press(widget, key)
    assert widget.name == "" and widget.progress.startswith("10 of 10")
    press(widget, "1")
    chosen = [answer.choice for answer in widget.session.answers.values()]
    assert chosen == ["teacher"] * 9 + [None]
    press(widget, "u")
    assert widget.name == "image 9"


# --- in a browser -----------------------------------------------------------------------------------------


@pytest.fixture
def lab(tmp_path):
    """Address of a JupyterLab whose folder holds a notebook with the widget; ends with the test."""
    root = project_root()
    code = NOTEBOOK.format(paths=[str(root), str(root / "tests" / "unit")])
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code.strip())])
    kernel = {"name": "own", "display_name": "own", "language": "python"}
    notebook.metadata["kernelspec"] = kernel
    nbformat.write(notebook, tmp_path / "pairs.ipynb")
    spec = tmp_path / "data" / "kernels" / "own"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({**kernel, "argv": argv}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.password=",
        f"--ServerApp.root_dir={tmp_path}",
    ]  # fmt: skip
    environment = {**os.environ, "JUPYTER_PATH": str(tmp_path / "data"), "HOME": str(tmp_path)}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    yield f"http://127.0.0.1:{port}/lab/tree/pairs.ipynb"
    server.terminate()
    server.wait(timeout=60)


@pytest.fixture
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in found:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(found[1]))
    yield browser
    browser.quit()


def until(condition, seconds=180):
    """What a condition returns once that is true; it may fail before."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except Exception as error:  # a page that is being built raises a dozen of them
            last = error
        time.sleep(0.2)
    raise AssertionError(f"still not after {seconds} s; last error: {last}")


@pytest.mark.slow
def test_ten_pairs_in_a_browser(lab, chromium, tmp_path):
    css = "css selector"
    until(lambda: chromium.get(lab) is None)
    until(lambda: chromium.find_element(css, ".jp-NotebookPanel .cm-content").is_displayed())
    until(lambda: chromium.find_element(css, "[data-status='idle']"))

    def run_the_cell():  # a click while the kernel is on its way is lost now and then
        chromium.find_element(css, ".jp-Cell .cm-content").click()
        chromium.find_element(css, "[data-command='notebook:run-cell-and-select-next']").click()
        return until(lambda: chromium.find_element(css, ".panolib-pairs"), seconds=60)

    root = until(run_the_cell)
    text = lambda: root.find_element(css, ".progress").text  # noqa: E731
    size = "return arguments[0].naturalWidth"
    until(lambda: chromium.execute_script(size, root.find_element(css, ".first")) == 512)
    chromium.save_screenshot(os.environ.get("PANOLIB_SCREENSHOT", str(tmp_path / "pairs.png")))

    for number, key in enumerate("121", start=1):  # buttons
        root.find_element(css, f"[data-key='{key}']").click()
        until(lambda n=number: text().startswith(f"{n} of 10"))
    escape = "\ue00c"  # to command mode
    chromium.find_element(css, ".jp-Cell:last-child .cm-content").send_keys(escape)
    numbers = (4, 5, 6, 7, 8, 9, 8, 7, 8, 9, 10)  # neither twice, which restarts the kernel elsewhere
    for number, key in zip(numbers, "212100uu212", strict=True):
        root.send_keys(key)
        until(lambda n=number: text().startswith(f"{n} of 10"))
    assert len(chromium.find_elements(css, ".jp-CodeCell")) == 2, "1 would have made a heading of one"
    assert not chromium.find_elements(css, ".jp-Dialog")
    assert not root.find_element(css, ".pair").is_displayed()
    choices = [answer.choice for answer in ten_pairs(tmp_path / "answers.jsonl").answers.values()]
    assert choices == ["teacher"] * 10
