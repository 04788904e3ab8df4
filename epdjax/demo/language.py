"""The words of the demo: how things are named, how questions are put, how answers are read back.

Nothing here knows a scene. `QUESTIONS` holds the phrasings of each question as templates; `dress` adds the politeness
and punctuation that people use; `keywords` reduces any answer to the words that matter.
"""

import random
import re

from epdjax.demo.scenes import COLOURS, SHAPES, SIZES

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six")
ANYTHING = ("object", "shape", "thing")
SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big")}

# {x}, {y}: names of things, {a}: one with its article, {s}: a plural, {d}: a direction, {z}: a size, {p}: "first".
QUESTIONS: dict[str, tuple[str, ...]] = {
    "shape": (
        "what shape is the {x}",
        "which shape is the {x}",
        "what is the shape of the {x}",
        "the {x}, what shape is it",
        "tell me the shape of the {x}",
        "what shape does the {x} have",
        "name the shape of the {x}",
    ),
    "colour": (
        "what colour is the {x}",
        "which colour is the {x}",
        "what is the colour of the {x}",
        "what colour does the {x} have",
        "tell me the colour of the {x}",
        "the {x}, what colour is it",
        "name the colour of the {x}",
        "which colour does the {x} have",
    ),
    "count": (
        "how many {s} are there",
        "how many {s} are in the picture",
        "how many {s} do you see",
        "how many {s} can you see",
        "count the {s}",
        "what is the number of {s}",
        "how many {s} does the picture have",
        "how many {s}",
        "how many {s} are in this image",
        "count the number of {s} in the picture",
        "how many {s} does the image show",
        "what number of {s} is in the picture",
    ),
    "count_in": (
        "how many {s} are in the {p} picture",
        "how many {s} does the {p} picture have",
        "count the {s} in the {p} picture",
        "in the {p} picture, how many {s} are there",
        "how many {s} are there in the {p} image",
        "how many {s} do you see in the {p} picture",
    ),
    "existence": (
        "is there {a}",
        "is there {a} in the picture",
        "can you see {a}",
        "do you see {a}",
        "does the picture have {a}",
        "is {a} in the picture",
        "does the picture contain {a}",
        "does the image show {a}",
        "is there {a} in this image",
        "is {a} visible",
        "are there any {s}",
        "are there {s} in the picture",
        "do you see any {s}",
    ),
    "existence_in": (
        "is there {a} in the {p} picture",
        "does the {p} picture have {a}",
        "can you see {a} in the {p} picture",
        "is there {a} in the {p} image",
        "does the {p} picture contain {a}",
        "are there any {s} in the {p} picture",
    ),
    "sideways": (
        "is the {x} on the left or on the right",
        "is the {x} on the left or the right",
        "on which side is the {x}, left or right",
        "is the {x} left or right",
        "is the {x} at the left or at the right",
        "is the {x} on the right or on the left",
        "left or right: where is the {x}",
    ),
    "updown": (
        "is the {x} at the top or at the bottom",
        "is the {x} at the top or the bottom",
        "is the {x} at the bottom or at the top",
        "is the {x} top or bottom",
        "top or bottom: where is the {x}",
        "is the {x} in the top or the bottom half",
    ),
    "where": (
        "where is the {x}",
        "where in the picture is the {x}",
        "where can i find the {x}",
        "where do you see the {x}",
        "in which part of the picture is the {x}",
        "what is the position of the {x}",
        "where is the {x} in the image",
        "tell me where the {x} is",
    ),
    "size": (
        "is the {x} small or large",
        "is the {x} large or small",
        "what size is the {x}",
        "how big is the {x}",
        "what is the size of the {x}",
        "is the {x} big or small",
        "which size does the {x} have",
        "how large is the {x}",
    ),
    "is_size": ("is the {x} {z}", "is the {x} a {z} one", "would you call the {x} {z}", "is it a {z} {x}"),
    "bigger": (
        "which is bigger, the {x} or the {y}",
        "which is larger, the {x} or the {y}",
        "what is bigger, the {x} or the {y}",
        "which one is larger: the {x} or the {y}",
        "which one is bigger, the {x} or the {y}",
    ),
    "smaller": (
        "which is smaller, the {x} or the {y}",
        "what is smaller, the {x} or the {y}",
        "which one is smaller: the {x} or the {y}",
    ),
    "is_bigger": ("is the {x} bigger than the {y}", "is the {x} larger than the {y}"),
    "is_smaller": ("is the {x} smaller than the {y}",),
    "more": (
        "which picture has more {s}",
        "which picture shows more {s}",
        "which image has more {s}",
        "in which picture are there more {s}",
        "where are more {s}, in the first or the second picture",
        "which of the two pictures has more {s}",
        "which picture contains more {s}",
        "are there more {s} in the first picture or in the second",
    ),
    "fewer": (
        "which picture has fewer {s}",
        "which image has fewer {s}",
        "in which picture are there fewer {s}",
        "which of the two pictures has fewer {s}",
    ),
    "both": (
        "is the {x} in both",
        "is the {x} in both pictures",
        "is there {a} in both pictures",
        "do both pictures have {a}",
        "do both pictures show {a}",
        "can you see {a} in both pictures",
        "is {a} in both images",
        "do both images contain {a}",
        "does {a} appear in both pictures",
        "is {a} in each of the two pictures",
        "are there {s} in both pictures",
        "do both pictures have {s}",
    ),
    "describe": (
        "describe the picture",
        "describe this picture",
        "what is in the picture",
        "what do you see",
        "describe the image",
        "what can you see in the picture",
        "what does the picture show",
        "give a description of the picture",
        "what is in this image",
        "describe what you see",
        "tell me what is in the picture",
        "list the objects in the picture",
        "what is this",
        "what is shown here",
        "describe this image in detail",
        "describe it",
        "caption this picture",
        "what objects are in the picture",
        "what shapes do you see",
    ),
    "describe_in": (
        "describe the {p} picture",
        "what is in the {p} picture",
        "what does the {p} picture show",
        "what do you see in the {p} picture",
        "describe the {p} image",
        "list the objects in the {p} picture",
    ),
}
# Said without any picture, and what is answered.
SMALL_TALK: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        ("hello", "hi", "hey", "hi there", "hello there", "good morning", "good evening", "hello, how are you"),
        "hello! show me a picture of simple shapes and ask me about it.",
    ),
    (
        (
            "who are you",
            "what are you",
            "what can you do",
            "help",
            "what is this",
            "how can you help me",
            "what is epdjax",
        ),
        "i am a small demo model. i answer questions about pictures of simple shapes.",
    ),
    (("thanks", "thank you", "thank you very much", "bye", "goodbye", "great, thanks"), "you are welcome."),
)
NO_PICTURE = "please show me a picture."
OPENINGS = ("please", "can you tell me:", "hi!", "hello,", "hey,", "tell me,", "quick question:", "so,", "ok,", "now,")
CLOSINGS = ("please", "thanks", "thank you", "in this picture", "here")


def plural(noun: str) -> str:
    """The plural of a noun phrase whose last word is regular."""
    return noun + "s"


def article(noun: str) -> str:
    """The noun phrase with "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def dress(rng: random.Random, text: str) -> str:
    """Vary a bare question the way people do: spelling, a greeting, a "please", capital letters, punctuation."""
    if rng.random() < 0.3:
        text = text.replace("colour", "color")
    if rng.random() < 0.15:
        text = text.replace("what is", "what's").replace("where is", "where's")
    if rng.random() < 0.25:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.08:
        text = f"{text}, {rng.choice(CLOSINGS[:3])}"
    style = rng.random()
    if style < 0.5:
        text = text[0].upper() + text[1:]
    elif style < 0.55:
        text = text.upper()
    is_order = text.lower().startswith(("count", "describe", "list", "name", "tell", "give", "caption"))
    marks = (".", "", "!") if is_order else ("?", "", "?", " ?")
    return text + rng.choice(marks)


_SYNONYMS = {
    "big": "large",
    "little": "small",
    "tiny": "small",
    "middle": "centre",
    "center": "centre",
    "upper": "top",
    "lower": "bottom",
    "equal": "same",
    "yeah": "yes",
    "nope": "no",
    **{word: str(i) for i, word in enumerate(NUMBER_WORDS)},
    **{plural(shape): shape for shape in SHAPES},
}
_CATEGORIES: dict[str, str] = {
    **dict.fromkeys(SIZES, "size"),
    **dict.fromkeys(COLOURS, "colour"),
    **dict.fromkeys(SHAPES, "shape"),
    **dict.fromkeys(("left", "right", "top", "bottom", "centre"), "place"),
    **dict.fromkeys(("yes", "no"), "verdict"),
    **dict.fromkeys(("first", "second", "same"), "picture"),
    **{str(i): "number" for i in range(10)},
}


def keywords(text: str) -> list[tuple[str, str]]:
    """The (category, word) pairs that carry an answer's meaning, in order, synonyms folded together."""
    words = (_SYNONYMS.get(word, word) for word in re.findall(r"[a-z]+|\d+", text.lower()))
    return [(_CATEGORIES[word], word) for word in words if word in _CATEGORIES]
