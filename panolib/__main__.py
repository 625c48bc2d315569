"""The command line, ``python -m panolib {predict,adapt,runs,train,reproduce,data,bench,export,pairs,
weights,pack,unpack}``."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from panolib.errors import UserError
from panolib.log_lines import write_lines_to_files

AFTER_TRAINING = "goes on from the last checkpoints"
GOES_ON = {"predict": "goes on after the images that are written; the one in work begins anew"}  # by command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit status: 0, 1 for an error that a user can mend, 130 if stopped."""
    options, unknown = _parser().parse_known_args(arguments)
    if unknown:
        options.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        from panolib.your_images.given import check_given

        check_given(options)  # before what imports torch, for that takes seconds
        from panolib import commands

        return getattr(commands, options.command)(options) or 0
    except KeyboardInterrupt as stopped:
        goes_on = f"stopped; the same command {GOES_ON.get(options.command, AFTER_TRAINING)}"
        print(f"\n{str(stopped) or goes_on}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `python -m panolib runs | head` has read enough; Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UserError, OSError) as error:  # a full or read-only disk, a file that is not there
        print(f"error: {error}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """One that takes no abbreviations (--weight is a slip, no option) and says what a slip resembles."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, allow_abbrev=False, **options)
        self.set_defaults(parser=self)  # a command's own, whose usage is then shown

    def parse_known_args(self, args=None, namespace=None):
        given = sys.argv[1:] if args is None else list(args)
        self._given = given[: given.index("--")] if "--" in given else given
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        known = self._option_string_actions
        given = [text.partition("=")[0] for text in self._given if text.startswith("--")]
        near = {slip: difflib.get_close_matches(slip, known, n=1) for slip in given if slip not in known}
        for slip, option in near.items():
            message += f"; {slip}: did you mean {option[0]}?" if option else ""
        super().error(message)


def _parser() -> argparse.ArgumentParser:
    """The options of every command."""
    about = "Self-trained panoptic segmentation: a study in notebooks."
    parser = _Parser("python -m panolib", description=about)
    commands = parser.add_subparsers(required=True, metavar="command")
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def add(command: str, summary: str, profile: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(command.removeprefix("list_"), help=summary, description=summary)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--profile",
            default=profile,
            required=profile is None,
            help="smoke, cpu, gpu or paper of notebooks/profiles, or the path of a YAML file, whose results "
            "are kept under its name",
        )
        return sub

    def add_workers(sub: argparse.ArgumentParser) -> None:
        text = "processes that train at the same time (default: %(default)s)"
        sub.add_argument("--workers", type=_whole(1), default=min(2, n_cores), help=text)

    def add_clusters(sub: argparse.ArgumentParser) -> None:
        where = sub.add_mutually_exclusive_group()
        where.add_argument(
            "--cluster", choices=("local", "slurm", "cuda"), default="local",
            help="where the workers are: processes of this machine (default), SLURM jobs, or one for each "
            "GPU of this machine, whatever --workers says",
        )
        where.add_argument(
            "--scheduler", type=_address, default="", metavar="ADDRESS",
            help="train on the workers of a Dask scheduler that runs, such as tcp://host:8786; they see this "
            "folder under the same path",
        )
        sub.add_argument(
            "--cluster-settings", type=Path, metavar="FILE",
            help="of --cluster slurm: YAML with queue and walltime, and if wanted cores, memory, gpus, "
            "account, interface, setup, options",
        )

    summary = "Predict classes and objects of your images, with networks that are shipped or your own."
    sub = commands.add_parser("predict", help=summary, description=summary)
    sub.set_defaults(command="predict")
    sub.add_argument(
        "images", nargs="+", metavar="IMAGES",
        help="PNG, JPEG, TIFF of 8 or 16 bit: files, folders, patterns; images of one colour, such as green "
        "on black, are read as grey. A large image takes 27 bytes of memory a pixel, 2.7 GB for 10000 x "
        "10000, and 0.6 GB for a tile",
    )
    sub.add_argument(
        "--weights", required=True, metavar="W",
        help="street, nuclei, a file of the command weights (which takes runs of every profile), or the name "
        "of a recorded run of profile cpu",
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="for the results; goes on there")
    sub.add_argument(
        "--overwrite", action="store_true",
        help="replace what is there of other images, weights or settings, and forget images that are gone",
    )
    text = "go on where it stopped, as is done anyway"
    sub.add_argument("--resume", action="store_true", help=text)
    scales = sub.add_mutually_exclusive_group()
    scales.add_argument(
        "--scale", type=_below(100), metavar="F",
        help="resize images by this for the networks (default: to the size of those they learned from)",
    )
    scales.add_argument(
        "--diameter", type=_below(10_000), metavar="N",
        help="median diameter of the objects in these images, pixels: images are resized so that it becomes "
        "that of the objects that the networks learned from (nuclei, and what adapt writes)",
    )
    sub.add_argument(
        "--tile", type=_whole(160), metavar="N", default=1024,
        help="pixels a side beyond which images are predicted in tiles (default: %(default)s); networks "
        "judge objects by what is around them, so tiles much smaller than that change what is found",
    )
    sub.add_argument(
        "--views", choices=("one", "left_right", "all", "scales"),
        help="views of every image, over which predictions are averaged: it alone, mirrored left to right "
        "(2), in all directions (8, for microscopes), or left to right at three sizes (6, for streets); each "
        "costs as much as the image alone (default: as the weights say, else one)",
    )
    summary = "Adapt networks from labelled images of yours to images without labels."
    sub = commands.add_parser("adapt", help=summary, description=summary)
    sub.set_defaults(command="adapt")
    sub.add_argument(
        "--profile",
        help="whose settings and iterations are taken (default: cpu, with iterations for half an hour with "
        "100 small images on two free cores, hours on busy ones; the plan measures it)",
    )
    sub.add_argument(
        "--minutes", type=_below(100_000), metavar="N",
        help="take fewer iterations, at least 20 a training, so that what follows the rehearsal (a few "
        "minutes) takes about so long; a few hundred iterations show that all works, no more",
    )
    of_folder = {"type": _folder, "metavar": "DIR"}
    sub.add_argument("--source", required=True, **of_folder, help="images with labels, in a known layout")
    sub.add_argument("--target", required=True, **of_folder, help="images without labels")
    sub.add_argument("--out", required=True, **of_folder, help="for everything; goes on there")
    text = "networks to begin with, as of predict: street, nuclei, a file or a run (default: none)"
    sub.add_argument("--start", metavar="W", help=text)
    sub.add_argument("--labels", **of_folder, help="some target images with labels, to score")
    sub.add_argument("--label-set", metavar="YAML", help="its classes (default: background and object)")
    sub.add_argument(
        "--diameter", type=_below(10_000), metavar="N",
        help="of objects in the target, pixels: the source is rescaled to it",
    )
    sub.add_argument(
        "--intensity", nargs=2, type=float, metavar=("LOW", "HIGH"),
        help="percentiles of each image that become black and white (default: 1 99.8, or those of --start)",
    )
    add_workers(sub)
    add("list_runs", "Print every run of the study with its state.", profile="cpu")
    sub = add("train", "Train the chosen runs, and those they start from.")
    sub.add_argument(
        "--only", default="*", metavar="GLOB", help="names of runs, such as 'city-semantic-*-s0'"
    )
    sub.add_argument(
        "--minutes", type=_below(100_000), metavar="M",
        help="stop by itself after so many minutes; the same command goes on from the last checkpoints",
    )
    add_workers(sub)
    add_clusters(sub)
    sub = add("reproduce", "Write the data, train what is not recorded, execute the notebooks.")
    sub.add_argument("--notebook", metavar="NN", help="only the notebooks whose name begins so, such as 07")
    sub.add_argument(
        "--retrain", action="store_true", help="train recorded runs again; a stopped one goes on"
    )
    sub.add_argument(
        "--dry-run",
        action="store_true",
        help="only open the data, build every run and network, check what the notebooks ask for, and print "
        "runs, iterations, disk, memory and hours; exit status 0 if it could run, 1 with a line for each "
        "problem if not",
    )
    add_workers(sub)
    add_clusters(sub)
    add_workers(add("data", "Render the data sets that are not there, and list the folders that are read."))
    add("bench", "Time the core operations anew, beside what people use today.", profile="cpu")
    sub = add("export", "Write what a run predicts on validation images, in formats of the official tools.")
    sub.add_argument(
        "--run", required=True, metavar="NAME", help="a panoptic run, or a run of a semantic network"
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="an empty folder, or a new one")
    sub.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    sub = add("pairs", "Write two segmentations of each image, for a person to choose the better one.")
    sub.add_argument(
        "--run", required=True, metavar="NAME", help="a run of notebook 12 whose name has -candidates-"
    )
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="an empty folder, or a new one")
    sub = add("weights", "Write the networks of a panoptic run to one file, with a model card.")
    sub.add_argument("--run", required=True, metavar="NAME", help="such as nuclei-panoptic-self_trained-s0")
    sub.add_argument("--out", required=True, type=Path, metavar="FILE", help="ends in .safetensors")
    sub.add_argument("--small", action="store_true", help="large kernels in 8 bits instead of 16")
    sub = add("pack", "Write records and half-precision weights in parts of at most 15 MiB.")
    sub.add_argument("--out", required=True, type=Path, metavar="DIR", help="a folder without such parts")
    sub = add("unpack", "Put packed records and weights of another machine among those of a profile.")
    sub.add_argument("folder", type=Path, metavar="DIR", help="the folder that holds the parts")
    return parser


def _whole(least: int) -> Callable[[str], int]:
    """Type of an option: a whole number of that or more."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of {least} or more, found {text!r}")
        return int(text)

    return read


def _folder(text: str) -> Path:
    """Type of an option: a folder; an empty text is a variable of the shell that is not set."""
    if not text:
        raise argparse.ArgumentTypeError(f"expected a folder, found {text!r}")
    return Path(text)


def _address(text: str) -> str:
    """Type of an option: where a Dask scheduler listens; whether it does is seen when runs are trained."""
    if text and not re.fullmatch(r"([a-z]+://)?[^\s/]+:\d+", text):
        raise argparse.ArgumentTypeError(f"expected an address such as tcp://host:8786, found {text!r}")
    return text


def _below(limit: float) -> Callable[[str], float]:
    """Type of an option: a number between 0 and a limit, both left out."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = 0.0
        if not 0 < found < limit:
            raise argparse.ArgumentTypeError(f"expected a number above 0 and below {limit:g}, found {text!r}")
        return found

    return read


if __name__ == "__main__":
    if not sys.stderr.isatty():  # a file of what is printed gets a line now and then; before tqdm is imported
        for name in ("TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
            os.environ.setdefault(name, "20")
        write_lines_to_files()
    sys.exit(main())
