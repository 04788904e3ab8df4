"""Numbers drawn at random, written the way a command line takes them."""

import dataclasses
import math
import random

FORMS = "22 (always), 4..32 (evenly), lognormal:200:0.8 (median, sigma), choice:1,2,4 (one of them)"


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Whole numbers, at least `least`, drawn with a generator.

    Attributes:
        kind: ``always``, ``evenly``, ``lognormal`` or ``choice``.
        values: what the kind takes.
        least: smaller numbers become this.
    """

    kind: str
    values: tuple[float, ...]
    least: int = 0

    @classmethod
    def parse(cls, text: str | int, least: int = 0) -> "Distribution":
        """One of `FORMS`.

        Raises:
            ValueError: none of them, or numbers that make no sense.
        """
        text = str(text).strip()
        kind, _, rest = text.partition(":")
        try:
            if kind == "lognormal":
                median, sigma = (float(part) for part in rest.split(":"))
                if not (median > 0 and sigma >= 0):
                    raise ValueError
                return cls(kind, (median, sigma), least)
            if kind == "choice":
                return cls(kind, tuple(_count(part) for part in rest.split(",")), least)
            if ".." in text:
                low, high = (_count(part) for part in text.split(".."))
                if low > high:
                    raise ValueError
                return cls("evenly", (low, high), least)
            return cls("always", (_count(text),), least)
        except ValueError:
            raise ValueError(f"{text!r} is none of {FORMS}") from None

    def sample(self, rng: random.Random) -> int:
        """A number."""
        match self.kind:
            case "always":
                value = self.values[0]
            case "evenly":
                value = rng.randint(int(self.values[0]), int(self.values[1]))
            case "choice":
                value = rng.choice(self.values)
            case _:
                value = rng.lognormvariate(math.log(self.values[0]), self.values[1])
        return max(self.least, round(value))

    def __str__(self) -> str:
        numbers = [f"{value:g}" for value in self.values]
        match self.kind:
            case "always":
                return numbers[0]
            case "evenly":
                return "..".join(numbers)
            case "choice":
                return f"choice:{','.join(numbers)}"
        return f"lognormal:{':'.join(numbers)}"


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value
