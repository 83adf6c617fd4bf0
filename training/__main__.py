"""`python -m training COMMAND`: see README.md beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import latent_mini, latent_pair

WEIGHTS = Path("daemon/editors/weights/latent-mini.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("command", choices=["autoencoder", "inpainter", "export", "judge"])
    parser.add_argument("--data", type=Path, help="folder of photographs")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="what export writes and judge reads")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--size", type=int, default=128, help="side of a crop in pixels")
    parser.add_argument("--count", type=int, default=100, help="pictures to judge")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    parser.add_argument(
        "--latents",
        type=lambda text: [Path(part) for part in text.split(",")],
        metavar="ENCODER,DECODER",
        help="inpainter, export: on the latents of this autoencoder instead of latent-mini's",
    )
    parser.add_argument("--crops", type=int, default=4800, help="crops encoded in advance, with --latents")
    given = parser.parse_args()
    if given.data is None and given.command != "export":
        parser.error(f"{given.command} needs --data, a folder of photographs")
    if given.threads:
        torch.set_num_threads(given.threads)
    encoder, inpainter = given.runs / "autoencoder", given.runs / "inpainter"
    common = {name: getattr(given, name) for name in ("steps", "seed", "batch", "size")}
    if given.latents and given.command in ("inpainter", "export"):
        _on_latents(given, common)
    elif given.command == "autoencoder":
        latent_mini.autoencoder(given.data, encoder, **common)
    elif given.command == "inpainter":
        latent_mini.inpainter(given.data, encoder, inpainter, **common)
    elif given.command == "export":
        latent_mini.export(encoder, inpainter, given.weights)
    else:
        from training.judge import judge  # needs OpenCV, which training does not

        judge(given.data, given.weights, given.runs / "judge", given.count, given.seed)


def _on_latents(given: argparse.Namespace, common: dict[str, int]) -> None:
    folder = given.runs / "pair"
    if given.command == "inpainter":
        latent_pair.inpainter(given.data, given.latents, folder, crops=given.crops, **common)
    else:
        target = folder / "net.safetensors" if given.weights == WEIGHTS else given.weights
        latent_pair.export(folder, target)
        print(target)


if __name__ == "__main__":
    main()
