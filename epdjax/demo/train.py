"""The training loop: optax, Orbax, progress.

A checkpoint is the flat list of arrays of parameters and optimiser state; batches are a function of the step; so a
resumed run does exactly what the uninterrupted one would have done.
"""

import ctypes
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from epdjax.demo import loader
from epdjax.demo.data import Batch
from epdjax.demo.objective import Arrays, Objective, Params, right_answers
from epdjax.demo.questions import KINDS
from epdjax.demo.recipe import TrainConfig, hf_config
from epdjax.demo.tokenizer import IMAGE, load_tokenizer, train_tokenizer
from epdjax.models.families.internvl.model import InternVLConfig
from epdjax.models.lmm import LMM

Loss = Callable[[Params, Arrays], tuple[jax.Array, dict[str, jax.Array]]]


@dataclasses.dataclass
class TrainState:
    """All that a checkpoint holds."""

    step: int
    params: Params
    opt_state: Any


def keep_freed_memory() -> None:
    """Tell glibc to keep what XLA frees.

    Given back to the kernel after each step, it took half of the CPU time to be mapped in again.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # not so in musl
            trim_threshold, mmap_max, arena_max = -1, -4, -8
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(mmap_max, 0)
            libc.mallopt(arena_max, 1)


def prepare(run: Path) -> Path:
    """The run's tokenizer folder, trained now if it is not there yet."""
    folder = run / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer().save_pretrained(str(folder))
    return folder


def model_config(config: TrainConfig, tokenizer_folder: Path) -> tuple[InternVLConfig, dict[str, Any]]:
    """The model's config, and the Hugging Face dict it is read from."""
    tokenizer = load_tokenizer(tokenizer_folder)
    hf = hf_config(
        config.sizes,
        len(tokenizer),
        tokenizer.encode(IMAGE)[0],
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    return InternVLConfig.from_hf(hf), hf


def optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Muon for the matrices, AdamW for the rest; warm-up, a plateau, and a linear decay over the last part.

    Muon needs about half of AdamW's steps here; a plateau lets a run be cut short or prolonged on resuming.
    """
    decay = max(1, int(config.steps * config.decay_share))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, config.learning_rate * 0.01, decay),
        ],
        [config.warmup, max(config.warmup, config.steps - decay)],
    )

    def matrices(params: Params) -> dict[str, optax.contrib.MuonDimensionNumbers | None]:
        linear = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=0)
        return {name: linear if name.endswith("kernel") and "aux/" not in name else None for name in params}

    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            adam_weight_decay=0.0,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=0.2,
        ),
    )


class Trainer:
    """A model in training, in the folder `run` (tokenizer, checkpoints, log).

    Args:
        config: the recipe.
        run: created if need be; a checkpoint in it is resumed from.
    """

    def __init__(self, config: TrainConfig, run: Path):
        self.config, self.run = config, run
        run.mkdir(parents=True, exist_ok=True)
        self.tokenizer_folder = prepare(run)
        self.internvl_config, self.hf_config = model_config(config, self.tokenizer_folder)
        self.objective = Objective(self.internvl_config, nnx.Rngs(config.seed), config.aux_weight)
        self.optimiser = optimiser(config)
        self._step = jax.jit(functools.partial(self._update, self.objective.loss), donate_argnums=(0, 1))
        self._encoder_step = jax.jit(
            functools.partial(self._update, self.objective.encoder_loss), donate_argnums=(0, 1)
        )
        self._predict = jax.jit(self.objective.predict)
        self._manager = ocp.CheckpointManager(
            (run / "checkpoints").absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2)
        )
        self.state = self.restore()

    def _update(
        self, loss: Loss, params: Params, opt_state: Any, x: Arrays
    ) -> tuple[Params, Any, dict[str, jax.Array]]:
        (_, parts), grads = jax.value_and_grad(loss, has_aux=True)(params, x)
        updates, opt_state = self.optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, parts

    def restore(self) -> TrainState:
        """The state of the latest checkpoint, or the initial one."""
        params = self.objective.initial
        opt_state = self.optimiser.init(params)
        step = self._manager.latest_step()
        if step is None:
            return TrainState(0, params, opt_state)
        leaves, tree = jax.tree.flatten((params, opt_state))
        saved = self._manager.restore(step, args=ocp.args.StandardRestore([np.asarray(leaf) for leaf in leaves]))
        params, opt_state = jax.tree.unflatten(tree, [jax.numpy.asarray(leaf) for leaf in saved])
        return TrainState(step, params, opt_state)

    def save(self) -> None:
        """Write a checkpoint of the present state."""
        if self._manager.latest_step() != self.state.step:
            leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((self.state.params, self.state.opt_state))]
            self._manager.save(self.state.step, args=ocp.args.StandardSave(leaves))
            self._manager.wait_until_finished()

    @property
    def model(self) -> LMM:
        """The module with the present weights."""
        return self.objective.model(self.state.params)

    def step(self, batch: Batch) -> dict[str, jax.Array]:
        """One update, of the encoder alone where the batch has no questions; returns the parts of the loss."""
        state = self.state
        step = self._step if len(batch.kinds) else self._encoder_step
        params, opt_state, parts = step(state.params, state.opt_state, Arrays.of(batch))
        self.state = TrainState(state.step + 1, params, opt_state)
        return parts

    def accuracy(self, batches: Iterator[Batch] | list[Batch]) -> dict[str, tuple[int, int]]:
        """(right, asked) per kind of question: answers reproduced whole, token by token."""
        right, asked = np.zeros(len(KINDS), int), np.zeros(len(KINDS), int)
        for batch in batches:
            good = right_answers(batch, np.asarray(self._predict(self.state.params, Arrays.of(batch))))
            np.add.at(asked, batch.kinds, 1)
            np.add.at(right, batch.kinds, good)
        return {kind: (int(right[i]), int(asked[i])) for i, kind in enumerate(KINDS) if asked[i]}


def train(config: TrainConfig, run: Path, workers: int = 1, console: Console | None = None) -> Trainer:
    """Train (or go on training) until `config.steps` or `config.minutes`, whichever comes first.

    Writes checkpoints to ``run/checkpoints`` and one JSON line per evaluation to ``run/log.jsonl``.
    """
    keep_freed_memory()
    console = console or Console()
    trainer = Trainer(config, run)
    if trainer.state.step:
        console.print(f"resuming from step {trainer.state.step}")
    held_out = [
        loader.make(trainer.tokenizer_folder, wanted, multi_turn=0.0, system=0.0) for wanted in loader.held_out(config)
    ]
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(*columns, TextColumn("{task.fields[parts]}"), console=console, disable=not console.is_terminal)
    began, log = time.monotonic(), _log_to(run / "log.jsonl", console)
    seen = {"samples": 0, "questions": 0}
    recent: list[dict[str, jax.Array]] = []
    with progress:
        bar = progress.add_task("", total=config.steps, completed=trainer.state.step, parts="")
        for batch in loader.stream(trainer.tokenizer_folder, config, trainer.state.step, workers):
            recent.append(trainer.step(batch))
            step = trainer.state.step
            seen["samples"] += len(batch.tokens)
            seen["questions"] += len(batch.kinds)
            minutes = (time.monotonic() - began) / 60
            out_of_time = config.minutes is not None and minutes >= config.minutes
            if step % 50 == 0:
                values = {k: round(float(np.mean([p[k] for p in recent if k in p])), 4) for k in recent[-1]}
                recent.clear()
                progress.update(bar, completed=step, parts=" ".join(f"{k} {v:.3f}" for k, v in values.items()))
                log({"step": step, "minutes": round(minutes, 2), **seen, **values})
            if (step % config.eval_every == 0 and len(batch.kinds)) or step == config.steps or out_of_time:
                scores = trainer.accuracy(held_out)
                log({"step": step, "accuracy": {k: round(r / n, 3) for k, (r, n) in scores.items()}})
            if step % config.save_every == 0 or step == config.steps or out_of_time:
                trainer.save()
            if out_of_time:
                break
    return trainer


def _log_to(path: Path, console: Console) -> Callable[[dict[str, Any]], None]:
    def log(entry: dict[str, Any]) -> None:
        line = json.dumps(entry)
        with path.open("a") as file:
            file.write(line + "\n")
        if not console.is_terminal or "accuracy" in entry:
            console.print(line, highlight=False, soft_wrap=True)

    return log
