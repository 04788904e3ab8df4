"""The loop that lets a deployment follow its load: looks at it, asks the controller, and makes the switch or just says
which it would make."""

import logging
import threading
import time
from typing import TYPE_CHECKING

from epdjax.serving.controller import Controller, ControllerSettings, Decision
from epdjax.serving.errors import EngineEnded
from epdjax.serving.load import Estimate, LoadEstimator
from epdjax.serving.role_plans import SwitchRefused, candidates

if TYPE_CHECKING:
    from epdjax.serving.engine import Engine

log = logging.getLogger(__name__)


class Steering:
    """See the module.

    Args:
        engine: whose deployment it is.
        mode: ``auto`` makes switches, ``advise`` only logs them.
        settings: of the controller.
    """

    def __init__(self, engine: "Engine", mode: str, settings: ControllerSettings):
        self._engine, self.mode, self._settings = engine, mode, settings
        self._estimator, self._controller = LoadEstimator(), Controller(settings)
        self._stop = threading.Event()
        self.estimate: Estimate | None = None
        self.decision: Decision | None = None
        self._thread = threading.Thread(target=self._loop, name="epdjax-steering", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the loop."""
        self._stop.set()
        self._thread.join(timeout_s)

    def _loop(self) -> None:
        while not self._stop.wait(self._settings.interval_s):
            try:
                self._look()
            except SwitchRefused as error:
                log.info("no switch: %s", error)
            except EngineEnded:
                return
            except Exception:
                log.exception("looking at the load has failed")

    def _look(self) -> None:
        engine = self._engine
        sample = engine.call(lambda: engine.scheduler.meter.sample(time.monotonic()))
        self.estimate = self._estimator.observe(sample)
        if engine.switching.current is not None:
            return
        plans = candidates(list(engine.deployment.places), self._costs_s(), engine.deployment.workshop.config.irp)
        before, self.decision = self.decision, self._controller.decide(sample.now, self.estimate, list(plans))
        chosen = self.decision.candidate
        loud = chosen is not None or before is None or before.reason != self.decision.reason
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in self.decision.numbers.items())
        log.log(logging.INFO if loud else logging.DEBUG, "roles: %s (%s)", self.decision.reason, numbers)
        if chosen is None:
            return
        log.warning("%s: %s", "switching" if self.mode == "auto" else "advice", plans[chosen])
        if self.mode == "auto":
            engine.switch(plans[chosen])

    def _costs_s(self) -> dict[tuple[str, str], float]:
        """What the last switch of each kind has taken."""
        return {(r.plan.removes, r.plan.adds): r.seconds for r in list(self._engine.switching.history)}
