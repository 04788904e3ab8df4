"""Instances that fail: telling them from requests that do, doing without them, and making lost pools anew."""

import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

from epdjax.mesh.places import Place
from epdjax.serving.instance import Instance

if TYPE_CHECKING:
    from epdjax.serving.engine import Engine

log = logging.getLogger(__name__)


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

    Attributes:
        lost: instances that were taken out, by name.
    """

    def __init__(self, engine: "Engine", hang_s: float):
        self._engine, self._hang_s = engine, hang_s
        self.lost: dict[str, Lost] = {}

    @property
    def next_alarm(self) -> float:
        """When a step that is running now will have taken too long; infinite where none is."""
        return self._engine.roles.next_alarm(self._hang_s)

    def look(self) -> None:
        """Take out what has turned out not to work."""
        roles = self._engine.roles
        for name in roles.failing:
            self.take_out(name, "its steps fail, whatever is in them")
        for name in roles.hanging(time.monotonic(), self._hang_s):
            self.take_out(name, f"a step has not ended within {self._hang_s:g} s")

    def failed_on(self, name: str) -> None:
        """Something failed on an instance: find out whether everything does, before more is risked on it."""
        self.recover(self._engine.instances[name])
        self._probe(name)

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
        del engine.instances[name]
        places = engine.deployment.places
        place = next(place for place in places if place.name == name)
        places.remove(place)
        self.lost[name] = Lost(dataclasses.replace(place, roles=""), why)
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
            done = instance.probe()
        except Exception as error:
            report(None, error)
        else:
            engine.waiter(name, "compute").watch(done, False, report)

    def _probed(self, instance: Instance, error: BaseException | None) -> None:
        name, roles = instance.name, self._engine.roles
        if self._engine.instances.get(name) is not instance:
            return  # taken out, or changed, meanwhile
        roles.end_probe(name, well=error is None)
        if error is not None:
            log.error("a probe of %s failed: %r", name, error)
            self.recover(instance)
            if name not in roles.failing:
                self._probe(name)
