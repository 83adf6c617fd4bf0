"""Trains the editors that ship inside the package: `python -m training COMMAND`; see training/README.md."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Size, Tensor

from backfire import attack_paths, config, inpaint, weights
from backfire.config import Folders, Settings
from backfire.errors import BackfireError
from backfire.files import durable
from backfire.inpaint.encoders import EncoderEditor
from backfire.inpaint.latent import InpaintNet
from training import autoencoder, lama, latent_pair, ldm_mini, start, student
from training.run import Options, weights_of

WEIGHTS = Path("daemon/backfire/inpaint/weights")
STARTS = Path("daemon/backfire/perturb/starts")
COMMANDS = [
    "autoencoder", "inpainter", "ldm", "ldm-decoder", "lama", "student", "student-decoder", "start",
    "export", "judge",
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument(
        "--editor",
        "--editors",
        default="flux2-mini",
        help="export, judge, start: name of the editor; judge, start: of several, with commas between them",
    )
    parser.add_argument(
        "--weights", type=Path, help="export: the file to write; judge: weights to load instead of --editor"
    )
    parser.add_argument(
        "--start",
        type=Path,
        help="student, inpainter: an editor's file, with whose weights the training starts",
    )
    parser.add_argument(
        "--channels", type=_whole(8, 8), default=64, help="student: channels of its convolutions"
    )
    parser.add_argument(
        "--kind",
        choices=["latent", "ldm", "lama"],
        default="latent",
        help="judge: kind of editor of --weights",
    )
    parser.add_argument("--steps", type=_whole(1), default=6000)
    parser.add_argument(
        "--minutes", type=_positive, default=math.inf, help="end after this time if before --steps"
    )
    parser.add_argument("--batch", type=_whole(1), default=12)
    parser.add_argument("--size", type=_whole(8, 8), default=128, help="side of a crop in pixels")
    parser.add_argument("--config", type=Path, help="start: a configuration that declares further editors")
    parser.add_argument(
        "--out",
        type=Path,
        help="start: the folder for EDITOR.safetensors; without it, starts in the configuration's "
        "models.folder, or the package itself where there is no --config",
    )
    parser.add_argument(
        "--count", type=_whole(1), help="judge: number of pictures (100); start: number of tiles (3)"
    )
    parser.add_argument("--seed", type=_whole(0), default=1)
    parser.add_argument("--threads", type=_whole(0), default=0, help="0: all cores")
    parser.add_argument(
        "--workers", type=_whole(0), default=0, help="processes that prepare crops; about 4 for a GPU"
    )
    parser.add_argument(
        "--latents",
        type=lambda text: [Path(part) for part in text.split(",")],
        metavar="ENCODER,DECODER",
        help="inpainter, export, judge: the autoencoder on whose latents the net works; student: "
        "the autoencoder to learn from",
    )
    parser.add_argument(
        "--crops", type=_whole(1), default=4800, help="ldm, inpainter: crops encoded in advance"
    )
    parser.add_argument(
        "--portraits", type=Path, help="inpainter: a folder of portraits, of which it is shown some as well"
    )
    parser.add_argument(
        "--critics-weight", type=_positive, default=1.0, help="inpainter: how much the critics' losses count"
    )
    parser.add_argument(
        "--width",
        type=_width,
        default=latent_pair.WIDTH,
        metavar="OUTER,INNER",
        help="inpainter: channels of the net at full and at half resolution",
    )
    given = parser.parse_args(argv)
    is_student = given.command.startswith("student")
    if (is_student or given.command == "inpainter") and not given.latents:
        parser.error(f"{given.command} needs --latents, the encoder and the decoder that it learns from")
    if given.start and not ((is_student or given.command == "inpainter") and given.start.is_file()):
        parser.error(f"--start {given.start}: it takes the file of an editor, for a student or an inpainter")
    if given.data is None and given.command != "export":
        parser.error(f"{given.command} needs --data, a folder of photographs")
    if given.start:
        _require_fit(given)
    if given.threads:
        torch.set_num_threads(given.threads)
    codec, small_lama = given.runs / "autoencoder", given.runs / "lama"
    common = Options(**{field.name: getattr(given, field.name) for field in fields(Options)})
    if given.latents and given.command in ("inpainter", "export"):
        _on_latents(given, common)
    elif given.command == "start":
        _starts(given, common)
    elif is_student:
        folder = given.runs / f"student-{given.channels}"
        train = student.train_encoder if given.command == "student" else student.train_decoder
        train(given.data, given.latents, folder, common, given.channels, given.start)
    elif given.command == "autoencoder":
        autoencoder.train(given.data, codec, common)
    elif given.command == "ldm":
        ldm_mini.unet(given.data, codec, given.runs / "ldm-unet", common, given.crops)
    elif given.command == "ldm-decoder":
        ldm_mini.decoder(given.data, codec, given.runs / "ldm-decoder", common)
    elif given.command == "lama":
        lama.train(given.data, small_lama, common)
    elif given.command == "judge":
        from training import judge  # needs OpenCV, which training does not

        editors = judge.editors(given.editor, given.weights, given.kind, given.latents or ())
        folder = given.runs / "judge" / "-".join(editor.name for editor in editors)
        judge.judge(given.data, editors, folder, given.count or 100, given.seed)
    else:
        target = given.weights or WEIGHTS / f"{given.editor}.safetensors"
        if given.editor == "lama-mini":
            lama.export(small_lama, target)
        elif given.editor == "ldm-mini":
            ldm_mini.export(given.runs, target)
        elif given.editor in ("flux2-mini", "flux2-micro"):
            shipped = WEIGHTS / f"{given.editor}.safetensors"
            student.export(given.runs / f"student-{given.channels}", given.runs / "pair", target, shipped)
        else:
            parser.error(
                f"--editor {given.editor}: export knows flux2-mini, flux2-micro, ldm-mini and lama-mini"
            )
        state_sum(target)


def _whole(least: int, step: int = 1) -> Callable[[str], int]:
    """Reads an option that is a whole number, `least` or more, in steps of `step`."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least or int(text) % step:
            multiple = f" and a multiple of {step}" if step > 1 else ""
            raise argparse.ArgumentTypeError(
                f"got {text!r}, expected a whole number, {least} or more{multiple}; give such a one"
            )
        return int(text)

    return read


def _width(text: str) -> tuple[int, int]:
    parts = [_whole(16, 16)(part) for part in text.split(",")]
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, expected two numbers with a comma; give such as 96,144"
        )
    return parts[0], parts[1]


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number > 0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0; give such a one")
    return number


def _require_fit(given: argparse.Namespace) -> None:
    """Refuse a `--start` of which nothing can be trained on: a student may be wider than it, a net may not.

    Raises:
        SystemExit: it is of another width or architecture.
    """
    teacher = EncoderEditor.load("teacher", given.latents)
    if given.command == "inpainter":
        latent = teacher.encoder(torch.zeros(1, 3, 64, 64)).shape[1]
        fits = _shapes(weights_of(given.start, "net")) == _shapes(
            InpaintNet(latent, given.width).state_dict()
        )
        if not fits:
            raise SystemExit(
                f"--start {given.start}: got an editor whose net does not fit, expected one of "
                f"{given.width[0]} and {given.width[1]} channels, on the same latents; give another file, or "
                "--width"
            )
        return
    for index, part in enumerate(("encoder", "decoder")[: 1 + (given.command == "student-decoder")]):
        theirs = _shapes(weights_of(given.start, part))
        width = theirs.get("layers.0.weight", (0,))[0]
        # Only its channels may be fewer: built as wide as it is, a student has its very shapes.
        alike = 0 < width <= given.channels and theirs == _shapes(
            student.student_of(teacher, width)[index].state_dict()
        )
        if not alike:
            raise SystemExit(
                f"--start {given.start}: got an editor whose {part} does not fit, expected one of the same "
                f"architecture and latents with {given.channels} channels at most; give --channels as many "
                "as it has, or another file"
            )


def _shapes(state: dict[str, Tensor]) -> dict[str, Size]:
    return {name: value.shape for name, value in state.items()}


def _starts(given: argparse.Namespace, common: Options) -> None:
    """Make stored starts for each of the editors, one after the other, and say where they are."""
    try:
        declared = given.config and config.load(given.config)
        settings = declared or Settings(folders=Folders(inbox=Path("inbox")))
        # What is to be made anew may be missing, or be of other weights.
        bare = {name: one.model_copy(update={"start": None}) for name, one in settings.editors.items()}
        settings = settings.model_copy(update={"editors": bare})
        out = given.out or (settings.models.folder / "starts" if declared else STARTS)
        named = None if settings.verify.paths == "auto" else settings.verify.paths
        for name in given.editor.split(","):
            editor = inpaint.get(name, settings=settings)
            through = attack_paths.chosen(named, inpaint.family(name, settings), name)
            # A run that is resumed goes on with the same weights.
            folder = given.runs / f"start-{name}-{editor.weights_sha256[:8]}"
            made_for = start.For(editor, through, settings.protect)
            start.train(given.data, made_for, folder, common, given.count or 3)
            target = out / f"{name}.safetensors"
            start.export(folder, target, editor)
            print(f"{target}: made" + (f"; set editors.{name}.start to it" if declared else ""))
    except BackfireError as error:
        raise SystemExit(str(error)) from error


def _on_latents(given: argparse.Namespace, common: Options) -> None:
    folder = given.runs / "pair"
    if given.command == "inpainter":
        latent_pair.inpainter(
            given.data,
            given.latents,
            folder,
            common,
            given.crops,
            given.start,
            given.portraits,
            given.critics_weight,
            given.width,
        )
    else:
        target = given.weights or folder / "net.safetensors"
        latent_pair.export(folder, target)
        state_sum(target)
        print(target)


def state_sum(file: Path) -> None:
    """Write the digest of a file into its folder's `SHA256SUMS`, if there is one.

    The package checks the weights that it loads by it.
    """
    sums = file.with_name(weights.SUMS)
    if sums.exists():
        # The lines of the others stay: a file that is damaged must not become what is expected.
        digests = {name: digest for digest, name in map(str.split, sums.read_text().splitlines())}
        digests[file.name] = durable.file_sha256(file)
        sums.write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))


if __name__ == "__main__":
    main()
