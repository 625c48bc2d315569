"""A session as a Jupyter widget: two overlays side by side, keys for answers, undo, zoom and outlines."""

from __future__ import annotations

import anywidget
import cv2
import numpy as np
import traitlets

from panolib.active.pictures import enlarged, outlined
from panolib.active.session import Session

SCRIPT = """
function render({model, el}) {
  el.classList.add("panolib-pairs");
  el.tabIndex = 0;
  el.dataset.lmSuppressShortcuts = "true";  // of Jupyter: 1 makes a heading, 0 0 restarts the kernel
  el.innerHTML = `
    <p>Which outlines are better? Blue ones are alike; of the others every object has its colour.</p>
    <div class="pair"><img class="first"><img class="second"></div>
    <div class="buttons">
      <button data-key="1">1 left</button><button data-key="2">2 right</button>
      <button data-key="0">0 neither</button><button data-key="u">u undo</button>
      <button data-key="z">z part / all</button><button data-key="h">h outlines</button>
      <span class="progress"></span></div>`;
  const find = name => el.querySelector(name);
  const press = key => model.send({key, name: model.get("name")});
  const show = () => {
    for (const side of ["first", "second"]) {
      URL.revokeObjectURL(find("." + side).src);
      find("." + side).src = URL.createObjectURL(new Blob([model.get(side)], {type: "image/png"}));
    }
    find(".pair").style.display = model.get("name") ? "" : "none";
    find(".progress").textContent = model.get("progress");
  };
  find(".buttons").addEventListener("click", event => {
    if (event.target.dataset.key) { press(event.target.dataset.key); el.focus(); }
  });
  el.addEventListener("keydown", event => {
    if (!/^[120uzh]$/.test(event.key) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    if (!event.repeat) press(event.key);
  });
  model.on("change:shown", show);
  show();
  el.focus({preventScroll: true});
}
export default {render};
"""
STYLE = """
.panolib-pairs {outline: none; padding: 4px; border: 2px solid transparent}
.panolib-pairs:focus-within {border-color: #4a90d9}
.panolib-pairs .pair {display: flex; gap: 8px}
.panolib-pairs img {width: calc(50% - 4px); max-width: 640px; object-fit: contain; align-self: flex-start}
.panolib-pairs .buttons {display: flex; gap: 6px; align-items: center; margin-top: 6px}
"""


class PairWidget(anywidget.AnyWidget):
    """Asks for the answers of a session.

    Of a large image the part is shown in which both differ most; z shows all of it, or the part again, and h
    hides the outlines or brings them back, which every new pair does. A key counts for the pair that its
    presser saw: one that comes while the next pair is on its way is dropped.
    """

    _esm, _css = SCRIPT, STYLE
    name = traitlets.Unicode().tag(sync=True)  # of the image; "" where there is nothing left to ask
    first = traitlets.Bytes().tag(sync=True)  # PNG
    second = traitlets.Bytes().tag(sync=True)
    progress = traitlets.Unicode().tag(sync=True)
    shown = traitlets.Int().tag(sync=True)  # counts what was shown; changes last, when all is there

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        self.on_msg(self._pressed)
        self._show()

    def _pressed(self, _widget, message: dict, _buffers) -> None:
        """A key or a button of the browser."""
        if message["name"] == self.name:
            self.session.press(message["key"])
            self._show()

    def _show(self) -> None:
        pair = self.session.current
        with self.hold_sync():
            self.name = "" if pair is None else pair.name
            if pair is not None:
                window = self.session.window
                sides = [enlarged(pair.image, window)] * 2
                if self.session.outlined:
                    sides = [outlined(pair.image, *of, window) for of in zip(pair.labels, pair.colours)]
                self.first, self.second = map(_png, sides)
            self.progress = self.session.progress
            self.shown += 1


def _png(picture: np.ndarray) -> bytes:
    return cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
