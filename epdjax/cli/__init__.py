"""The ``epdjax`` command: sub-commands that parse arguments and call the library. ``scripts/*.py`` are the same."""

import argparse
from collections.abc import Sequence

from epdjax.cli import (
    abuse_test,
    bench_attention,
    bench_cache,
    bench_encode,
    bench_moves,
    bench_overhead,
    bench_pace,
    bench_roles,
    bench_scheduler,
    bench_simulator,
    bench_startup,
    bench_transformers,
    eval_demo,
    load_test,
    plan,
    plan_memory,
    profile,
    reproduce,
    serve,
    train_demo,
)

COMMANDS = {
    "serve": serve,
    "train-demo": train_demo,
    "eval-demo": eval_demo,
    "plan-memory": plan_memory,
    "bench-attention": bench_attention,
    "bench-cache": bench_cache,
    "bench-encode": bench_encode,
    "bench-moves": bench_moves,
    "bench-overhead": bench_overhead,
    "bench-pace": bench_pace,
    "bench-roles": bench_roles,
    "bench-scheduler": bench_scheduler,
    "bench-simulator": bench_simulator,
    "bench-startup": bench_startup,
    "bench-transformers": bench_transformers,
    "abuse-test": abuse_test,
    "load-test": load_test,
    "plan": plan,
    "profile": profile,
    "reproduce": reproduce,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="epdjax", description="Serve large multimodal models, stages apart, on JAX.")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.HELP, description=command.HELP)
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


def script(name: str) -> int:
    """Run a sub-command as a script of its own."""
    command = COMMANDS[name]
    parser = argparse.ArgumentParser(description=command.HELP)
    command.add_arguments(parser)
    return command.run(parser.parse_args())
