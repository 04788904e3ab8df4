"""Where a good reader looks: targets for the attention of single heads, in training only.

Left alone, the decoder answers from a summary of the picture and takes very long to find out that it can look at the
very thing a question names. So one head is shown: from the end of each noun phrase to the tokens of what it names ("the
red circle" to the red circle), and another, at the start of what is about to be said, to what that is about; where two
things are named, that one looks from the second back to the first, so that both are known in one place.
"""

import dataclasses
import re
from collections.abc import Sequence

from epdjax.demo.language import ANYTHING, SIZE_WORDS
from epdjax.demo.questions import Noun, Question
from epdjax.demo.scenes import COLOURS, SHAPES

NAMED, NEXT = 0, 1  # the two guided heads: at what a phrase names; at what comes next in the answer

_SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in words}
_PHRASE = re.compile(
    rf"\b(?:({'|'.join(_SIZE_OF)})\s+)?(?:({'|'.join(COLOURS)})\s+)?(?:({'|'.join(SHAPES)})|{'|'.join(ANYTHING)})s?\b"
    rf"|\b(?P<colour>{'|'.join(COLOURS)})\s+ones?\b"
)


@dataclasses.dataclass(frozen=True)
class Guide:
    """One lesson in looking.

    Attributes:
        at: token of the segment (question, turn markers, answer) that looks.
        head: `NAMED` or `NEXT`.
        noun: what to look at, in the thumbnail; None where `pictures` say it.
        pictures: numbers of the pictures whose ends to look at.
    """

    at: int
    head: int
    noun: Noun | None = None
    pictures: tuple[int, ...] = ()


def phrases(text: str) -> list[tuple[int, int, Noun]]:
    """(start, end, meaning) of every noun phrase in a question or description; offsets in characters."""
    found = []
    for match in _PHRASE.finditer(text.lower()):
        size, colour, shape = match.group(1), match.group(2) or match.group("colour"), match.group(3)
        found.append((match.start(), match.end(), Noun(_SIZE_OF[size] if size else None, colour, shape)))
    return found


def guides(
    question: Question,
    pictures: int,
    text_offsets: Sequence[tuple[int, int]],
    turn: int,
    answer_offsets: Sequence[tuple[int, int]],
) -> list[Guide]:
    """The lessons of one segment.

    Args:
        question: asked and answered in it.
        pictures: how many it is about.
        text_offsets: character ranges of the question's tokens, which open the segment.
        turn: how many tokens lie between question and answer.
        answer_offsets: character ranges of the answer's tokens.
    """
    said = len(text_offsets) + turn  # the answer's first token
    if pictures == 2:
        # A thumbnail in the first of two pictures cannot be told from its tiles by position; the pictures' ends can.
        about_one = question.kind in ("count", "existence", "describe")
        one = 1 if "second" in question.text.lower() else 0
        return [Guide(said - 1, NEXT, pictures=(one,) if about_one else (0, 1))]
    named = [(_token_at(text_offsets, end - 1), noun) for _, end, noun in phrases(question.text)]
    lessons = [Guide(at, NAMED, noun) for at, noun in named]
    if len(named) == 1 and question.kind in ("shape", "colour", "position", "size"):
        lessons.append(Guide(said - 1, NEXT, named[0][1]))
    if len(named) == 2 and question.kind == "size":
        lessons.append(Guide(named[1][0], NEXT, named[0][1]))
    if question.kind == "describe":
        for _, end, noun in phrases(question.answer):
            start = question.answer.rfind(", ", 0, end)
            first = 0 if start < 0 else _token_at(answer_offsets, start + 2)
            lessons.append(Guide(said + first - 1, NEXT, noun))
    return lessons


def _token_at(offsets: Sequence[tuple[int, int]], character: int) -> int:
    return next(i for i, (_, end) in enumerate(offsets) if end > character)
