"""Batches made in background processes, ahead of the training step, in an order that depends on the seed alone."""

import dataclasses
import multiprocessing
import random
from collections.abc import Iterator
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Full

from epdjax.demo.data import BUCKETS, PREFIX_SLACK, Batch, Sampler
from epdjax.demo.recipe import TOKENS_PER_TILE, Stage, TrainConfig
from epdjax.demo.tokenizer import load_tokenizer

TRAIN_SEEDS = 1 << 32  # training batch i has this seed plus i (times a stride per run); held-out ones stay below it


@dataclasses.dataclass(frozen=True)
class Order:
    """What batch number `step` is to be: which bucket, how many samples, from which seed."""

    seed: int
    units: int
    size: int
    stage: Stage


def batch_size(units: int, batch_tokens: int) -> int:
    """Samples in a batch of a bucket, such that all buckets take about equally long."""
    length = PREFIX_SLACK + units * TOKENS_PER_TILE + BUCKETS[units]
    # A unit costs the encoder about as much as this many tokens cost the decoder.
    return max(1, round(batch_tokens / (length + 24 * units)))


def order(config: TrainConfig, step: int) -> Order:
    """The batch of a step: a function of the config and the step, so that a resumed run sees the same batches."""
    rng = random.Random(config.seed * 1_000_003 + step)
    share = step / config.steps
    stage = next((s for s in config.curriculum if share < s.until), config.curriculum[-1])
    units = rng.choices([u for u, _ in stage.buckets], [w for _, w in stage.buckets])[0]
    seed = TRAIN_SEEDS * (1 + config.seed) + step
    size = config.batch_units // units if stage.encoder_only else batch_size(units, config.batch_tokens)
    return Order(seed, units, size, stage)


def held_out(config: TrainConfig) -> list[Order]:
    """The batches of the quick check during training: all buckets of the last stage, single-turn, never trained on."""
    stage = config.curriculum[-1]
    buckets = [units for units, _ in stage.buckets]
    return [
        Order(i, buckets[i % len(buckets)], batch_size(buckets[i % len(buckets)], config.batch_tokens), stage)
        for i in range(config.eval_batches)
    ]


def make(tokenizer_folder: Path, wanted: Order, **sampling: float) -> Batch:
    """Make one batch here and now; `sampling` goes to `Sampler`."""
    sampler = Sampler(load_tokenizer(tokenizer_folder), wanted.seed, **sampling)
    return sampler.batch(wanted.units, wanted.size, wanted.stage)


def _work(tokenizer_folder: Path, config: TrainConfig, first: int, stride: int, queue: "Queue[Batch]") -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    for step in range(first, config.steps, stride):
        wanted = order(config, step)
        sampler = Sampler(tokenizer, wanted.seed)
        _put(queue, sampler.batch(wanted.units, wanted.size, wanted.stage))


def _put(queue: "Queue[Batch]", batch: Batch) -> None:
    """Put, waiting for room; ends the process when the training loop is gone."""
    parent = multiprocessing.parent_process()
    while True:
        try:
            return queue.put(batch, timeout=5)
        except Full:
            if parent is not None and not parent.is_alive():
                raise SystemExit(0) from None


def stream(
    tokenizer_folder: Path, config: TrainConfig, start: int, workers: int = 1, ahead: int = 8
) -> Iterator[Batch]:
    """Batches for steps `start` .. `config.steps`, each worker making every `workers`-th of them.

    The workers are processes (Python would serialise threads with the training loop) and end with the generator.
    """
    if start >= config.steps:
        return
    context = multiprocessing.get_context("spawn")
    queues: list[Queue[Batch]] = [context.Queue(maxsize=max(1, ahead // workers)) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(tokenizer_folder, config, start + i, workers, queue), daemon=True)
        for i, queue in enumerate(queues)
    ]
    for process in processes:
        process.start()
    try:
        for step in range(start, config.steps):
            yield queues[(step - start) % workers].get()
    finally:
        for process in processes:
            process.terminate()
