"""Instances that fail: telling them from requests that do, doing without them, and making lost pools anew."""

import collections
import dataclasses
import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from epdjax.mesh.places import Place
from epdjax.serving.instance import Instance
from epdjax.serving.move_watch import Move

if TYPE_CHECKING:
    from epdjax.serving.engine import Engine

log = logging.getLogger(__name__)
MOST_HUNG_MOVES = 3  # of an instance in a row, though steps on it end well


@dataclasses.dataclass(frozen=True)
class Lost:
    """An instance that was taken out: where it was, without roles, and why."""

    place: Place
    why: str


class Outages:
    """See the module. Runs on the engine's thread.

    Args:
        engine: whose instances they are.
        hang_s: a step that has not ended after so many seconds never will.
        move_s: a move likewise.

    Attributes:
        lost: instances that were taken out, by name. Never changed, but replaced as a whole: other threads read it.
    """

    def __init__(self, engine: "Engine", hang_s: float, move_s: float):
        self._engine, self._hang_s, self._move_s = engine, hang_s, move_s
        self.lost: Mapping[str, Lost] = {}
        self._hung_moves: collections.Counter[str] = collections.Counter()  # since the last that has landed

    @property
    def next_alarm(self) -> float:
        """When a step or a move that is running now will have taken too long; infinite where none is."""
        moves = self._engine.scheduler.move_watch.since + self._move_s
        return min(moves, self._engine.roles.next_alarm(self._hang_s))

    def look(self) -> None:
        """Take out what has turned out not to work, and give up moves that do not end."""
        roles = self._engine.roles
        for move in self._engine.scheduler.overdue_moves(time.monotonic(), self._move_s):
            if self._engine.scheduler.is_running(move):  # it is void where one of its ends was taken out just now
                self._give_up(move)
        for name in roles.failing:
            self.take_out(name, "its steps fail, whatever is in them")
        for name in roles.hanging(time.monotonic(), self._hang_s):
            self.take_out(name, f"a step has not ended within {self._hang_s:g} s")

    def failed_on(self, name: str) -> None:
        """Something failed on an instance: find out whether everything does, before more is risked on it."""
        self.recover(self._engine.instances[name])
        self._probe(name)

    def _give_up(self, move: Move) -> None:
        """A move has not ended in time. Nobody knows which of its ends is to blame, if any, so both are looked at; only
        one whose moves go on like that, whatever its steps do, is done without."""
        engine, ends = self._engine, (move.source, move.instance)
        engine.fail(move, TimeoutError(f"a move from {ends[0]} to {ends[1]} has not ended within {self._move_s:g} s"))
        engine.waiters.renew(move.instance, "move")
        self._hung_moves.update(ends)
        for name in ends:
            self.recover(engine.instances[name])
            self._probe(name)
        worst = max(reversed(ends), key=lambda name: self._hung_moves[name])
        if self._hung_moves[worst] >= MOST_HUNG_MOVES:
            self.take_out(worst, f"moves to or from it do not end within {self._move_s:g} s")

    def landed(self, move: Move) -> None:
        """A move has ended well."""
        for name in (move.source, move.instance):
            self._hung_moves.pop(name, None)

    def came_back(self, name: str) -> None:
        """An instance is there again."""
        self.lost = {other: lost for other, lost in self.lost.items() if other != name}

    def recover(self, instance: Instance) -> None:
        """After a failure: if it took the instance's pools along, they are made anew, and who had something there
        starts over."""
        if instance.pools and not instance.pools_alive:
            log.error("the pools of %s are lost; making new ones", instance.name)
            self._engine.scheduler.lost(instance.name)
            instance.make_pools()

    def take_out(self, name: str, why: str) -> None:
        """Do without an instance from now on. Its requests go on elsewhere; if a stage has no instance now, another
        takes it over."""
        log.error("%s is taken out: %s", name, why)
        engine = self._engine
        engine.roles.take_out(name, time.monotonic())
        engine.waiters.drop(name)
        self._hung_moves.pop(name, None)
        del engine.instances[name]
        places = engine.deployment.places
        place = next(place for place in places if place.name == name)
        places.remove(place)
        self.lost = {**self.lost, name: Lost(dataclasses.replace(place, roles=""), why)}
        if engine.scheduler.unserved:
            engine.switching.rescue()
        else:
            engine.give_up()

    def _probe(self, name: str) -> None:
        engine = self._engine
        instance = engine.instances[name]

        def report(result: Any, error: BaseException | None) -> None:
            engine.post(lambda: self._probed(instance, error))

        if not engine.roles.begin_probe(name, time.monotonic()):
            return
        try:
            engine.waiters.of(name, "compute").watch(instance.probe(), False, report)
        except Exception as error:
            report(None, error)

    def _probed(self, instance: Instance, error: BaseException | None) -> None:
        name, roles = instance.name, self._engine.roles
        if self._engine.instances.get(name) is not instance:
            return  # taken out, or changed, meanwhile
        roles.end_probe(name, well=error is None)
        if error is not None:
            log.error("a probe of %s failed", name, exc_info=error)
            self.recover(instance)
            if name not in roles.failing:
                self._probe(name)
