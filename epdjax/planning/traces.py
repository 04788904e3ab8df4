"""Traces: requests of a workload in a file, one JSON object a line."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from epdjax.planning.media_sizes import Media
from epdjax.planning.workloads import Ask

_FIELDS = {field.name for field in dataclasses.fields(Ask)}
_MEDIA_FIELDS = {field.name for field in dataclasses.fields(Media)}


def write_trace(path: str | Path, asks: Iterable[Ask]) -> None:
    """Write requests so that `read_trace` gives them back."""
    lines = []
    for ask in asks:
        fields = {name: value for name, value in dataclasses.asdict(ask).items() if value != ()}
        lines.append(json.dumps(fields) + "\n")
    Path(path).write_text("".join(lines))


def read_trace(path: str | Path) -> list[Ask]:
    """Requests in the order of their arrival. Empty lines are skipped.

    Raises:
        ValueError: a malformed line, with its number.
    """
    asks = []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        if line.strip():
            try:
                asks.append(_ask(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    return sorted(asks, key=lambda ask: ask.at_s)


def _ask(line: str) -> Ask:
    try:
        fields = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(fields, Mapping):
        raise ValueError(f"expected an object, found {type(fields).__name__}")
    _check_names(fields, _FIELDS)
    media = tuple(_media(item) for item in _list(fields, "media"))
    contents = tuple(_list(fields, "contents"))
    if contents and len(contents) != len(media):
        raise ValueError(f"contents says what {len(contents)} media items are, but there are {len(media)}")
    at_s = fields.get("at_s")
    if not isinstance(at_s, (int, float)) or not 0 <= at_s < math.inf:
        raise ValueError(f"at_s must be at least 0 seconds, not {at_s!r}")
    return Ask(float(at_s), _count(fields, "text_tokens"), _count(fields, "output_tokens"), media, contents)


def _media(fields: Any) -> Media:
    if not isinstance(fields, Mapping):
        raise ValueError(f"a media item is an object, not {fields!r}")
    _check_names(fields, _MEDIA_FIELDS)
    try:
        return Media(**fields)
    except TypeError as error:
        raise ValueError(f"a media item of the wrong type: {error}") from error


def _check_names(fields: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"unknown field {unknown[0]!r}; there are {', '.join(sorted(known))}")


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list, not {value!r}")
    return value
