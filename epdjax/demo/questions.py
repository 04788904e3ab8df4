"""Questions about scenes: every kind, its answer, and the judge of an answer.

A builder takes a source of chance and the scenes and returns a `Question`, or None where the scene offers nothing clear
to ask (two things nearly aligned are never left or right of one another). Wording comes from `epdjax.demo.language`.
"""

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from epdjax.demo.language import (
    ANYTHING,
    NO_PICTURE,
    NUMBER_WORDS,
    QUESTIONS,
    SIZE_WORDS,
    SMALL_TALK,
    article,
    dress,
    keywords,
    plural,
)
from epdjax.demo.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, random_scene

KINDS = (
    "shape",
    "colour",
    "count",
    "existence",
    "position",
    "size",
    "compare_two",
    "both",
    "describe",
)
LOW, HIGH = 0.37, 0.63  # beyond these shares of a side a thing is clearly at that side
MIDDLE = (0.43, 0.57)  # and between these clearly in the middle


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of one or two pictures, and the answer the demo model is taught."""

    kind: str
    text: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Noun:
    """A class of things, e.g. every small red circle; None stands for any."""

    size: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, thing: Thing) -> bool:
        """Whether `thing` belongs to the class."""
        return (
            self.size in (None, thing.size)
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
        )

    def count(self, scene: Scene) -> int:
        """How many things of the scene belong to the class."""
        return sum(self.fits(thing) for thing in scene.things)

    def say(self, rng: random.Random) -> str:
        """The class as a singular noun phrase."""
        words = [rng.choice(SIZE_WORDS[self.size])] if self.size else []
        words += [self.colour] if self.colour else []
        return " ".join([*words, self.shape or rng.choice(ANYTHING)])


def _ask(rng: random.Random, kind: str, phrasing: str, answer: str, **words: str) -> Question:
    return Question(kind, dress(rng, rng.choice(QUESTIONS[phrasing]).format(**words)), answer)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _unique(scene: Scene, *, colour: bool = True, shape: bool = True) -> list[Thing]:
    """Things that are the only one of their colour and/or shape."""

    def key(thing: Thing) -> tuple[str | None, str | None]:
        return (thing.colour if colour else None, thing.shape if shape else None)

    times = Counter(key(thing) for thing in scene.things)
    return [thing for thing in scene.things if times[key(thing)] == 1]


def _refer(rng: random.Random, scene: Scene) -> tuple[Thing, str] | None:
    """A thing and a name that fits no other: by colour and shape, or by one of them."""
    names = [(thing, thing.name) for thing in _unique(scene)] * 3
    names += [(thing, f"{thing.colour} {rng.choice((*ANYTHING, 'one'))}") for thing in _unique(scene, shape=False)]
    names += [(thing, thing.shape) for thing in _unique(scene, colour=False)]
    return rng.choice(names) if names else None


def _pair(rng: random.Random, scene: Scene) -> tuple[Thing, Thing] | None:
    things = _unique(scene)
    if len(things) < 2:
        return None
    first, second = rng.sample(things, 2)
    return first, second


def _shape(rng: random.Random, scene: Scene) -> Question | None:
    things = _unique(scene, shape=False)
    if not things:
        return None
    thing = rng.choice(things)
    name = rng.choice(ANYTHING[::2]) if len(scene.things) == 1 and rng.random() < 0.3 else None
    return _ask(
        rng, "shape", "shape", thing.shape, x=name or f"{thing.colour} {rng.choice(('object', 'thing', 'one'))}"
    )


def _colour(rng: random.Random, scene: Scene) -> Question | None:
    things = _unique(scene, colour=False)
    if not things:
        return None
    thing = rng.choice(things)
    name = rng.choice(ANYTHING) if len(scene.things) == 1 and rng.random() < 0.3 else thing.shape
    return _ask(rng, "colour", "colour", thing.colour, x=name)


def _nouns(rng: random.Random, scenes: Sequence[Scene]) -> list[Noun]:
    """Classes worth counting: those of things in the scenes, a few absent ones, and everything."""
    things = [thing for scene in scenes for thing in scene.things]
    nouns = {Noun(colour=t.colour) for t in things} | {Noun(shape=t.shape) for t in things}
    nouns |= {Noun(colour=t.colour, shape=t.shape) for t in things} | {Noun()}
    nouns |= {Noun(size=t.size) for t in things} if rng.random() < 0.3 else set()
    nouns |= {Noun(colour=rng.choice(COLOURS)), Noun(shape=rng.choice(SHAPES))}
    nouns.add(Noun(colour=rng.choice(COLOURS), shape=rng.choice(SHAPES)))
    return sorted(nouns, key=repr)


def _count(rng: random.Random, scene: Scene) -> Question | None:
    noun = _balanced(rng, _nouns(rng, [scene]), lambda noun: noun.count(scene))
    return _ask(rng, "count", "count", str(noun.count(scene)), s=plural(noun.say(rng)))


def _balanced(rng: random.Random, nouns: Sequence[Noun], outcome: Callable[[Noun], int]) -> Noun:
    """A noun such that every possible outcome is about equally likely."""
    wanted = rng.choice(sorted({outcome(noun) for noun in nouns}))
    return rng.choice([noun for noun in nouns if outcome(noun) == wanted])


def _present_or_not(rng: random.Random, scene: Scene) -> Noun:
    """A class that the scene has, or with the same chance one that it has not but nearly."""
    thing = rng.choice(scene.things)
    form = rng.choice(("name", "name", "name", "colour", "shape", "all"))
    size = thing.size if form == "all" else None
    colour = None if form == "shape" else thing.colour
    shape = None if form == "colour" else thing.shape
    if rng.random() < 0.5:
        return Noun(size, colour, shape)
    wrong = [Noun(size, c, shape) for c in COLOURS if colour] + [Noun(size, colour, s) for s in SHAPES if shape] * 2
    wrong += [Noun(s, colour, shape) for s in SIZES if size] * 3
    wrong = [noun for noun in wrong if not noun.count(scene)]
    return rng.choice(wrong) if wrong else Noun(size, colour, shape)


def _existence(rng: random.Random, scene: Scene) -> Question | None:
    noun = _present_or_not(rng, scene)
    name = noun.say(rng)
    return _ask(rng, "existence", "existence", _yes(noun.count(scene) > 0), a=article(name), s=plural(name))


def _zone(share: float, low: str, high: str) -> str | None:
    if share < LOW:
        return low
    if share > HIGH:
        return high
    return "" if MIDDLE[0] < share < MIDDLE[1] else None


def _position(rng: random.Random, scene: Scene) -> Question | None:
    found = _refer(rng, scene)
    if found is None:
        return None
    thing, name = found
    across, down = scene.where(thing)
    column, row = _zone(across, "left", "right"), _zone(down, "top", "bottom")
    options: list[tuple[str, str]] = []
    if column is not None and row is not None:
        options += [("where", f"{row} {column}".strip() or "centre")] * 2
    if column:
        options.append(("sideways", column))
    if row:
        options.append(("updown", row))
    if not options:
        return None
    phrasing, answer = rng.choice(options)
    return _ask(rng, "position", phrasing, answer, x=name)


def _size(rng: random.Random, scene: Scene) -> Question | None:
    pair = _pair(rng, scene)
    if pair is not None and pair[0].size != pair[1].size and rng.random() < 0.6:
        first, second = pair
        small, large = sorted(pair, key=lambda thing: thing.radius)
        phrasing, answer = rng.choice(
            (
                ("bigger", f"the {large.name}"),
                ("smaller", f"the {small.name}"),
                ("is_bigger", _yes(first is large)),
                ("is_smaller", _yes(first is small)),
            )
        )
        return _ask(rng, "size", phrasing, answer, x=first.name, y=second.name)
    found = _refer(rng, scene)
    if found is None:
        return None
    thing, name = found
    if rng.random() < 0.7:
        return _ask(rng, "size", "size", thing.size, x=name)
    asked = rng.choice(SIZES)
    return _ask(rng, "size", "is_size", _yes(asked == thing.size), x=name, z=rng.choice(SIZE_WORDS[asked]))


def inventory(scene: Scene) -> str:
    """The canonical description: things grouped by size, colour and shape, in one fixed order."""
    groups = Counter((COLOURS.index(t.colour), SHAPES.index(t.shape), -SIZES.index(t.size)) for t in scene.things)
    parts = []
    for (colour, shape, size), times in sorted(groups.items()):
        name = f"{SIZES[-size]} {COLOURS[colour]} {SHAPES[shape]}"
        parts.append(f"a {name}" if times == 1 else f"{NUMBER_WORDS[times]} {plural(name)}")
    return ", ".join(parts)


def _describe(rng: random.Random, scene: Scene) -> Question | None:
    return _ask(rng, "describe", "describe", inventory(scene))


_PAIR_ANSWERS = ("the second picture", "both have the same number", "the first picture")


def _compare_two(rng: random.Random, first: Scene, second: Scene) -> Question | None:
    def lead(noun: Noun) -> int:
        difference = noun.count(first) - noun.count(second)
        return (difference > 0) - (difference < 0)

    nouns = [noun for noun in _nouns(rng, [first, second]) if noun.count(first) + noun.count(second)]
    uneven = [noun for noun in nouns if lead(noun)]
    noun = _balanced(rng, uneven if uneven and rng.random() < 0.65 else nouns, lead)
    more = rng.random() < 0.75
    answer = _PAIR_ANSWERS[1 + (lead(noun) if more else -lead(noun))]
    return _ask(rng, "compare_two", "more" if more else "fewer", answer, s=plural(noun.say(rng)))


def _both(rng: random.Random, first: Scene, second: Scene) -> Question | None:
    nouns = sorted({Noun(colour=t.colour, shape=t.shape) for t in (*first.things, *second.things)}, key=repr)
    if rng.random() < 0.2:
        nouns = [Noun(colour=noun.colour) for noun in nouns] + [Noun(shape=noun.shape) for noun in nouns]
    noun = _balanced(rng, nouns, lambda noun: int(noun.count(first) > 0 and noun.count(second) > 0))
    answer = _yes(noun.count(first) > 0 and noun.count(second) > 0)
    name = noun.say(rng)
    return _ask(rng, "both", "both", answer, x=name, a=article(name), s=plural(name))


def _about_one_of_two(rng: random.Random, first: Scene, second: Scene) -> Question | None:
    """A count, an existence or a description question about one of the two pictures."""
    scene, which = rng.choice(((first, "first"), (second, "second")))
    topic = rng.choice(("count", "count", "existence", "describe"))
    if topic == "describe":
        return _ask(rng, "describe", "describe_in", inventory(scene), p=which)
    if topic == "existence":
        noun = _present_or_not(rng, scene)
        answer, name = _yes(noun.count(scene) > 0), noun.say(rng)
        return _ask(rng, "existence", "existence_in", answer, a=article(name), s=plural(name), p=which)
    noun = _balanced(rng, _nouns(rng, [first, second]), lambda noun: noun.count(scene))
    return _ask(rng, "count", "count_in", str(noun.count(scene)), s=plural(noun.say(rng)), p=which)


_ABOUT_ONE: dict[str, tuple[Callable[[random.Random, Scene], Question | None], float]] = {
    "shape": (_shape, 0.6),
    "colour": (_colour, 0.6),
    "count": (_count, 2.2),
    "existence": (_existence, 0.9),
    "position": (_position, 3.0),
    "size": (_size, 1.2),
    "describe": (_describe, 2.0),
}
_ABOUT_TWO: dict[str, tuple[Callable[[random.Random, Scene, Scene], Question | None], float]] = {
    "compare_two": (_compare_two, 3.5),
    "both": (_both, 3.5),
    "one_of_two": (_about_one_of_two, 1.0),
}


def random_question(rng: random.Random, scenes: Sequence[Scene], kind: str | None = None) -> Question | None:
    """A question about one scene or two, of a random kind or the given one.

    Returns:
        None when the scenes give no clear question of that kind (draw again, or take other scenes).

    Raises:
        KeyError: `kind` is not asked about that many pictures.
    """
    if len(scenes) == 1:
        kind = kind or rng.choices(list(_ABOUT_ONE), [weight for _, weight in _ABOUT_ONE.values()])[0]
        return _ABOUT_ONE[kind][0](rng, scenes[0])
    first, second = scenes
    kind = kind or rng.choices(list(_ABOUT_TWO), [weight for _, weight in _ABOUT_TWO.values()])[0]
    return _ABOUT_TWO[kind][0](rng, first, second)


def small_talk(rng: random.Random) -> tuple[str, str]:
    """Something said without a picture, and the answer: a greeting, or a question that needs a picture."""
    if rng.random() < 0.5:
        said, answer = rng.choice(SMALL_TALK)
        return dress(rng, rng.choice(said)), answer
    scenes = [random_scene(rng) for _ in range(rng.choice((1, 1, 2)))]
    question = random_question(rng, scenes) if all(scene.things for scene in scenes) else None
    return (question.text if question else "what do you see?"), NO_PICTURE


_GROUP = re.compile(
    rf"\b(a|an|\d|{'|'.join(NUMBER_WORDS)})\s+(?:({'|'.join(SIZES)})\s+)?({'|'.join(COLOURS)})\s+({'|'.join(SHAPES)})s?\b"
)


def _groups(description: str) -> Counter[tuple[str, str, str]]:
    found: Counter[tuple[str, str, str]] = Counter()
    for number, size, colour, shape in _GROUP.findall(description.lower()):
        known = {"a": 1, "an": 1, **{word: i for i, word in enumerate(NUMBER_WORDS)}}
        found[(size, colour, shape)] += known[number] if number in known else int(number)
    return found


def is_right(question: Question, answer: str) -> bool:
    """Whether `answer` means what the question's own answer means, whatever words surround it.

    Descriptions are compared as multisets of things; all else by the keywords of the categories that the right answer
    uses ("There are three circles." is right where the answer is "3").
    """
    if question.kind == "describe":
        return _groups(answer) == _groups(question.answer)
    right = keywords(question.answer)
    categories = {category for category, _ in right}
    return [pair for pair in keywords(answer) if pair[0] in categories] == right
