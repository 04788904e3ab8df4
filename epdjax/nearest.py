"""What to say of a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that was probably meant, if there is such, and all that are known; case does not matter."""
    names = {each.lower(): each for each in known}
    begun = [each for each in names if name and each.startswith(name.lower())]
    near = begun or get_close_matches(name.lower(), names, n=1)
    guess = f"did you mean {names[near[0]]!r}? " if near else ""
    return f"{guess}known: {', '.join(names.values())}"
