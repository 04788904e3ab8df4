"""A resumed run is the run that was never interrupted."""

import jax
import numpy as np
import pytest

from epdjax.demo.loader import make, order
from epdjax.demo.objective import right_answers, segment_mask
from epdjax.demo.recipe import ModelSizes, Stage, TrainConfig
from epdjax.demo.tokenizer import train_tokenizer
from epdjax.demo.train import Trainer

TINY = TrainConfig(
    steps=4,
    warmup=1,
    batch_tokens=500,
    sizes=ModelSizes(
        vision_hidden=16,
        vision_layers=1,
        vision_heads=2,
        text_hidden=32,
        text_layers=1,
        text_heads=2,
        text_kv_heads=1,
        text_mlp=32,
    ),
    curriculum=(Stage(until=1.0, buckets=((1, 1.0),), max_things=3, pairs=0.0),),
)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    run = tmp_path_factory.mktemp("run")
    train_tokenizer(texts=1000).save_pretrained(str(run / "tokenizer"))
    return Trainer(TINY, run)


def steps(trainer: Trainer, upto: int) -> dict[str, np.ndarray]:
    while trainer.state.step < upto:
        trainer.step(make(trainer.tokenizer_folder, order(trainer.config, trainer.state.step)))
    return {name: np.asarray(value) for name, value in trainer.state.params.items()}


@pytest.mark.slow
def test_resuming_gives_what_an_uninterrupted_run_gives(trainer: Trainer) -> None:
    start = {name: np.asarray(value) for name, value in trainer.state.params.items()}
    steps(trainer, 2)
    trainer.save()
    whole = steps(trainer, 4)
    assert any(not np.array_equal(start[name], whole[name]) for name in start)
    trainer.state = Trainer(TINY, trainer.run).state  # what another process would find
    assert trainer.state.step == 2
    resumed = steps(trainer, 4)
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name], err_msg=name)


def test_an_answer_counts_as_right_only_when_all_of_it_is(trainer: Trainer) -> None:
    batch = make(trainer.tokenizer_folder, order(TINY, 0))
    scores = trainer.accuracy([batch])
    assert sum(asked for _, asked in scores.values()) == len(batch.kinds)
    assert all(0 <= right <= asked for right, asked in scores.values())
    predicted = batch.targets.copy()
    assert right_answers(batch, predicted).all()
    predicted[batch.asked == 2] = -2
    assert np.flatnonzero(~right_answers(batch, predicted)).tolist() == [2]


def test_segments_see_the_prefix_and_themselves() -> None:
    mask = np.asarray(segment_mask(jax.numpy.array([[0, 0, 1, 1, 2, -1]])))[0]
    assert mask[3].tolist() == [True, True, True, True, False, False]
    assert mask[4].tolist() == [True, True, False, False, True, False]
    assert mask[1].tolist() == [True, True, False, False, False, False]
