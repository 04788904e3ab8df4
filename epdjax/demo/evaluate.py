"""Ask the demo model held-out questions through the engine, for one mesh spec or several, and count right answers."""

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from epdjax import LLM, MeshSpec, SamplingParams
from epdjax.demo.questions import KINDS, Question, is_right, random_question
from epdjax.demo.scenes import draw, random_scene

OVERALL, EACH_KIND = 0.95, 0.90  # shares of right answers the bundled model must reach
PAIR_KINDS = ("compare_two", "both")
ANSWER_TOKENS = 64


@dataclasses.dataclass(frozen=True)
class Asked:
    """A held-out question and its picture or pictures."""

    question: Question
    pictures: tuple[Image.Image, ...]

    def conversation(self) -> list[dict[str, Any]]:
        """As OpenAI-style messages."""
        parts: list[dict[str, Any]] = [{"type": "image", "image": picture} for picture in self.pictures]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": self.question.text}]}]


@dataclasses.dataclass(frozen=True)
class Report:
    """What came out for one mesh spec.

    Attributes:
        mesh: the mesh spec.
        right: right answers per kind.
        asked: questions per kind.
        answers: every answer, in the order of the questions.
    """

    mesh: str
    right: dict[str, int]
    asked: dict[str, int]
    answers: tuple[str, ...]

    @property
    def overall(self) -> float:
        """Share of right answers."""
        return sum(self.right.values()) / sum(self.asked.values())

    def share(self, kind: str) -> float:
        """Share of right answers of one kind."""
        return self.right[kind] / self.asked[kind]

    @property
    def passed(self) -> bool:
        """Whether both thresholds are reached."""
        return self.overall >= OVERALL and all(self.share(kind) >= EACH_KIND for kind in self.asked)

    def wrong(self, asked: Sequence[Asked]) -> list[tuple[Asked, str]]:
        """The questions answered wrongly, with the answers."""
        return [
            (item, answer)
            for item, answer in zip(asked, self.answers, strict=True)
            if not is_right(item.question, answer)
        ]

    def as_json(self) -> dict[str, Any]:
        """Numbers only, for a file."""
        kinds = {kind: {"right": self.right[kind], "asked": self.asked[kind]} for kind in self.asked}
        return {"mesh": self.mesh, "overall": self.overall, "passed": self.passed, "kinds": kinds}


def held_out_questions(per_kind: int, seed: int = 0) -> list[Asked]:
    """`per_kind` questions of each kind about scenes never trained on, of all sizes and proportions."""
    rng = random.Random(f"held out {seed}")  # training draws from whole numbers, so no text seeds the same scenes
    asked = []
    for kind in KINDS:
        found = 0
        while found < per_kind:
            scenes = [random_scene(rng) for _ in range(1 + (kind in PAIR_KINDS))]
            if kind in PAIR_KINDS and rng.random() < 0.7:
                shared = [(thing.colour, thing.shape) for thing in scenes[0].things]
                wanted = rng.sample(shared, min(len(shared), rng.randint(1, 3)))
                scenes[1] = random_scene(rng, wanted=wanted)
            if not all(scene.things for scene in scenes):
                continue
            question = random_question(rng, scenes, kind)
            if question is not None:
                asked.append(Asked(question, tuple(draw(scene, rng) for scene in scenes)))
                found += 1
    return asked


def evaluate(model: Path, mesh: str, asked: Sequence[Asked], **settings: Any) -> Report:
    """Put all questions to an engine on `mesh`; `settings` go to `LLM`."""
    llm = LLM(model=model, mesh=mesh, **settings)
    try:
        params = SamplingParams(temperature=0, max_tokens=ANSWER_TOKENS)
        outputs = llm.chat([item.conversation() for item in asked], params, raise_errors=True)
    finally:
        llm.shutdown()
    answers = tuple(output.outputs[0].text for output in outputs)
    return judge(mesh, asked, answers)


def evaluate_all(model: Path, meshes: Sequence[str], asked: Sequence[Asked]) -> list[Report]:
    """One report per mesh spec, in the order given."""
    # The largest goes first: on a CPU the first engine decides how many virtual devices the process has.
    largest_first = sorted(set(meshes), key=lambda mesh: -MeshSpec.parse(mesh).devices)
    reports = {mesh: evaluate(model, mesh, asked) for mesh in largest_first}
    return [reports[mesh] for mesh in meshes]


def judge(mesh: str, asked: Sequence[Asked], answers: Sequence[str]) -> Report:
    """Count the right ones among `answers`."""
    right, total = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for item, answer in zip(asked, answers, strict=True):
        total[item.question.kind] += 1
        right[item.question.kind] += is_right(item.question, answer)
    kinds = [kind for kind in KINDS if total[kind]]
    return Report(mesh, {k: right[k] for k in kinds}, {k: total[k] for k in kinds}, tuple(answers))


def differences(reports: Sequence[Report]) -> int:
    """How many questions got different answers on different mesh specs."""
    return sum(len(set(answers)) > 1 for answers in zip(*(report.answers for report in reports), strict=True))


def table(reports: Sequence[Report]) -> Table:
    """Right answers by kind and mesh spec, in per cent."""
    result = Table("kind", "asked", *(report.mesh for report in reports))
    for kind, asked in reports[0].asked.items():
        result.add_row(kind, str(asked), *(f"{100 * report.share(kind):.1f}" for report in reports))
    total = str(sum(reports[0].asked.values()))
    result.add_row("all", total, *(f"{100 * report.overall:.1f}" for report in reports))
    return result
