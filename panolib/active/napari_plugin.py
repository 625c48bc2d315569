"""A session in napari: image and segmentation side by side, twice; a dock with buttons and keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from napari.utils.colormaps import DirectLabelColormap
from napari.viewer import Viewer
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QLabel, QPushButton, QVBoxLayout, QWidget

from panolib.active.session import DamagedAnswers, NoPairs, Session, open_session

BUTTONS = {
    "1": "1  left", "2": "2  right", "0": "0  neither", "u": "u  undo", "z": "z  part / all",
    "h": "h  outlines",
}  # fmt: skip
SIDES = ("left", "right")
GAP = 0.05  # between both sides, of the width of an image
LAID_OUT_MS = 300  # until a new dock has its place


class PairsDock(QWidget):
    """Asks for the answers of a session; without one, of the folder that is opened by its button."""

    def __init__(self, napari_viewer: Viewer, session: Session | None = None):
        super().__init__()
        self.viewer, self.session, self._layers = napari_viewer, None, {}
        self._text = QLabel("Open a folder of pairs.")
        self._text.setWordWrap(True)
        layout = QVBoxLayout(self)
        opening = QPushButton("Open a folder of pairs ...")
        opening.clicked.connect(self._ask_for_folder)
        layout.addWidget(opening)
        layout.addWidget(self._text)
        self.buttons = {key: QPushButton(text) for key, text in BUTTONS.items()}
        for key, button in self.buttons.items():
            button.clicked.connect(lambda _checked=False, key=key: self.press(key))
            layout.addWidget(button)
        layout.addStretch()
        self._bind_keys(napari_viewer)
        if session is not None:
            self.start(session)

    @property
    def text(self) -> str:
        """What the dock says."""
        return self._text.text()

    def start(self, session: Session) -> None:
        """Ask for the answers of a session."""
        self.session = session
        self._show()
        QTimer.singleShot(LAID_OUT_MS, self.viewer.reset_view)  # the dock has made the canvas narrower

    def open(self, folder: Path) -> None:
        """Ask for the answers of a folder of pairs; says why where that is none."""
        try:
            self.start(open_session(folder))
        except (NoPairs, DamagedAnswers) as error:
            self._text.setText(str(error))

    def press(self, key: str) -> None:
        """What a key or a button does; nothing without a session."""
        if self.session is not None:
            self.session.press(key)
            self._show()

    def _ask_for_folder(self) -> None:
        if folder := QFileDialog.getExistingDirectory(self, "Folder of pairs"):
            self.open(Path(folder))

    def _bind_keys(self, where) -> None:
        """Bind the keys on the viewer, or on a layer, whose tools 1 and 2 choose where it is selected."""
        for key in BUTTONS:
            where.bind_key(key, lambda _where, key=key: self.press(key), overwrite=True)

    def _show(self) -> None:
        pair = self.session.current
        self._text.setText(self.session.progress if pair else f"Done: {self.session.progress}")
        if pair is None:
            for layer in self._layers.values():
                layer.visible = False
            return
        window = self.session.window
        image = pair.image[window]
        for number, side in enumerate(SIDES):
            translate = (0.0, number * (1 + GAP) * image.shape[1])
            labels = pair.labels[number][window]
            self._set_layer(f"{side}: image", image, translate, self.viewer.add_image)
            found = self._set_layer(f"{side}: objects", labels, translate, self.viewer.add_labels)
            found.colormap, found.visible = _colormap(pair.colours[number]), self.session.outlined
        self.viewer.reset_view()

    def _set_layer(self, name: str, data: np.ndarray, translate: tuple[float, float], add):
        """Show data in the layer of this name, which is made for the first pair, or where it was removed."""
        layer = self._layers.get(name)
        if layer is None or layer not in self.viewer.layers:
            layer = self._layers[name] = add(data, name=name)
            if name.endswith("objects"):
                layer.contour, layer.opacity, layer.editable = 1, 1.0, False
            self._bind_keys(layer)
        layer.data, layer.translate, layer.visible = data, translate, True
        return layer


def _colormap(colours: np.ndarray) -> DirectLabelColormap:
    """Colours uint8 [K + 1, 3] of the ids 0 .. K; 0 is transparent."""
    opaque = {k: (*(colour / 255), 1.0) for k, colour in enumerate(colours) if k > 0}
    return DirectLabelColormap(color_dict={None: np.zeros(4), 0: np.zeros(4), **opaque})
