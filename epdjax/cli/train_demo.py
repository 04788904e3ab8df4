"""``train-demo``: make the bundled demo model from nothing."""

import argparse
import dataclasses
from pathlib import Path

HELP = "Train the bundled demo model from nothing and export it in the Hugging Face layout."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="for checkpoints and log; resumed from if it has any")
    add("--export", type=Path, metavar="DIR", help="for the finished model (default: RUN/model)")
    add("--steps", type=int, metavar="N", help="length of the training (default: the recipe's)")
    add("--minutes", type=float, metavar="X", help="stop after so long, at a checkpoint")
    add("--seed", type=int, metavar="N", help="of weights and scenes (default: the recipe's)")
    add("--workers", type=int, default=1, metavar="N", help="processes that make pictures and questions (default: 1)")


def run(arguments: argparse.Namespace) -> int:
    """Train, resume, export."""
    from epdjax.demo.export import export
    from epdjax.demo.recipe import TrainConfig
    from epdjax.demo.tokenizer import load_tokenizer
    from epdjax.demo.train import train

    given = {name: getattr(arguments, name) for name in ("steps", "minutes", "seed")}
    config = dataclasses.replace(TrainConfig(), **{k: v for k, v in given.items() if v is not None})
    trainer = train(config, arguments.run, arguments.workers)
    folder = arguments.export or arguments.run / "model"
    export(trainer.model, trainer.hf_config, load_tokenizer(trainer.tokenizer_folder), folder)
    print(f"exported to {folder}")
    return 0
