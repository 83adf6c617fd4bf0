"""`python -m training COMMAND`: see README.md beside this file."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from training import latent_mini


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("command", choices=["autoencoder", "inpainter"])
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--size", type=int, default=128, help="side of a crop in pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=0, help="0: all cores")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    common = {k: getattr(arguments, k) for k in ("steps", "seed", "batch", "size")}
    if arguments.command == "autoencoder":
        latent_mini.autoencoder(arguments.data, arguments.runs / "autoencoder", **common)
    else:
        latent_mini.inpainter(
            arguments.data, arguments.runs / "autoencoder", arguments.runs / "inpainter", **common
        )


if __name__ == "__main__":
    main()
