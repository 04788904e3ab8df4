"""The order ``fair``: turns of clients, and of their users."""

import dataclasses
import heapq
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epdjax.serving import fair_share
from epdjax.serving.errors import InvalidRequest, Overloaded
from epdjax.serving.fair_share import MOST_LANES, TURN_S, FairShare
from epdjax.serving.params import MAX_NAME_CHARS, Urgency
from epdjax.serving.policies import rank
from epdjax.serving.request import RequestSpec
from tests.serving.scheduling import make_scheduler, picture, simulate
from tests.serving.test_policies import first_tokens


class Stage:
    """Starts requests in the order that they are given."""

    def __init__(self) -> None:
        self.order, self.queue, self.numbers = FairShare(), [], itertools.count()

    def submit(self, client: str, user: str = "", priority: int = 0) -> int:
        number = next(self.numbers)
        spec = RequestSpec(f"r{number}", 10, 2, client=client, user=user, priority=priority)
        heapq.heappush(self.queue, (rank(self.order, spec, "P", 0.0, number), number, client, user))
        return number

    def start(self) -> tuple[int, str, str]:
        (time, _), number, client, user = heapq.heappop(self.queue)
        self.order.started(time)
        return number, client, user


def test_clients_take_turns() -> None:
    stage = Stage()
    for _ in range(100):
        stage.submit("many")
    begun = [stage.start()[1] for _ in range(3)]
    for _ in range(3):
        stage.submit("few")
    begun += [stage.start()[1] for _ in range(7)]
    assert begun == ["many"] * 3 + ["few", "many"] * 3 + ["many"]


def test_users_take_turns_within_their_client() -> None:
    stage = Stage()
    for _ in range(60):
        stage.submit("a", "many")
    for _ in range(20):
        stage.submit("b")
    for _ in range(4):
        stage.submit("a", "few")
    begun = [stage.start() for _ in range(40)]
    clients = [client for _, client, _ in begun]
    few = [at for at, (_, _, user) in enumerate(begun) if user == "few"]
    assert few[0] < 4 and few[-1] < 30, "not behind the sixty"
    assert abs(clients.count("a") - clients.count("b")) <= 6, "which costs the other client little"


def test_users_without_end_get_no_more_than_one() -> None:
    """A client who names another user each time gets what others get."""
    stage = Stage()
    for number in range(400):
        stage.submit("trick", f"user {number}")
    for _ in range(100):
        stage.submit("honest")
    begun = [stage.start()[1] for _ in range(150)]
    assert begun.count("honest") >= 55


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["", "u", "v"]), st.integers(1, 40), st.integers(0, 30)),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(before=events, meanwhile=st.lists(st.sampled_from("abc"), max_size=200))
def test_the_next_request_starts_within_a_bounded_number_of_others(before: list, meanwhile: list[str]) -> None:
    """Whatever others have submitted before, and go on submitting."""
    stage = Stage()
    for client, user, count, starts in before:
        for _ in range(count):
            stage.submit(client, user)
        for _ in range(min(starts, len(stage.queue))):
            stage.start()
    mine = stage.submit("mine")
    others = iter(meanwhile)
    passed = -1
    started = None
    while started != mine:
        for client in itertools.islice(others, 3):
            stage.submit(client)
        started, passed = stage.start()[0], passed + 1
    assert passed <= 3 * 3 * 2, "three clients with three users each, two requests of each in any stretch of a turn"
    again = stage.submit("mine")
    for client in "abc" * 30:
        stage.submit(client)
    passed = next(count for count in itertools.count() if stage.start()[0] == again)
    assert passed <= 3 * 3 * 3


def test_clients_who_are_always_new_do_not_hold_others_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_share, "MOST_CLIENTS", 16)
    stage = Stage()
    for _ in range(2):
        last = stage.submit("old")
    for number in range(1000):
        stage.submit(f"new {number}")
        stage.submit(f"new {number} too")
        if stage.start()[0] == last:
            break
        assert stage.order.clients <= 17
    assert number <= 40


def test_clients_are_forgotten() -> None:
    stage = Stage()
    for number in range(5000):
        stage.submit(f"client {number}", f"user {number}")
        stage.start()
    assert stage.order.clients <= 1025
    for number in range(3000):
        stage.submit("one", f"user {number}")
    assert len(stage.order._lanes["one"]) <= MOST_LANES


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from(["EPD", "E P D", "E PD", "E P P D"]))
def test_one_client_is_served_as_they_come(seed: int, layout: str) -> None:
    """All that is done, in what order and when, is the same as with ``fcfs``."""
    import random

    logs = []
    for order in ("fcfs", "fair"):
        choose, at, arrivals = random.Random(seed), 0.0, []
        for number in range(25):
            at += choose.expovariate(8)
            contents = [f"p{choose.randrange(9)}" for _ in range(choose.choice([0, 0, 1, 3]))]
            text = RequestSpec(f"r{number}", choose.randint(5, 180), choose.randint(1, 60))
            arrivals.append((at, picture(f"r{number}", *contents) if contents else text))
        log: list = []
        simulate(make_scheduler(layout, order=order), arrivals, log)
        logs.append([(at, repr(work).split("rank=")[0]) for at, work in log])
    assert logs[0] == logs[1]


@pytest.mark.parametrize("kind", ["texts", "pictures", "long answers"])
def test_a_client_with_few_requests_beside_one_with_many(kind: str) -> None:
    """Sixty requests wait when the first of another client comes; it has its first token before all but a few."""

    def spec(name: str, client: str) -> RequestSpec:
        if kind == "pictures":
            return picture(name, name, client=client)
        return RequestSpec(name, 120, 40 if kind == "long answers" else 2, client=client)

    places = {}
    for order in ("fcfs", "fair", "encode=fair,prefill=fair,decode=fair"):
        scheduler = make_scheduler("E P D", order=order)
        log: list = []
        many = [(0.0, spec(f"m{i}", "many")) for i in range(60)]
        simulate(scheduler, [*many, (0.5, spec("first", "few")), (0.6, spec("second", "few"))], log)
        begun = first_tokens(log)
        there = {c.request_id for at, work in log if at <= 0.5 for c in getattr(work, "chunks", ()) if c.is_last}
        places[order] = [begun.index(name) - len(there) for name in ("first", "second")]
    assert min(places["fcfs"]) > 40
    most = 12 if kind == "long answers" else 6  # those that wait for a slot are started already
    assert max(places["fair"]) <= most, places
    assert places["encode=fair,prefill=fair,decode=fair"] == places["fair"]


def test_priorities_count_in_turns() -> None:
    stage = Stage()
    for _ in range(400):
        stage.submit("a")
    urgent = stage.submit("a", priority=-1)
    passed = next(count for count in itertools.count() if stage.start()[0] == urgent)
    assert abs(passed - (400 - 30 / TURN_S)) <= 1


def test_answers_count_as_requests_in_every_limit() -> None:
    spec = dataclasses.replace(picture("first", "cat", media_bytes=100), answers=4)
    for limits, says in (
        ({"max_requests": 5}, "4 of 5 requests"),
        ({"max_queued_units": 5}, "4 encode units"),
        ({"max_media_bytes": 500}, "0 MiB of media"),
    ):
        scheduler = make_scheduler("E P D", **limits)
        scheduler.add(spec, 0.0)
        scheduler.add(picture("other", "dog", media_bytes=100), 0.0)
        with pytest.raises(Overloaded, match=says.replace("4", "5")):
            scheduler.add(picture("one more", "cow", media_bytes=100), 0.0)
        for number in range(3):  # they have been let in with the first
            scheduler.add(picture(f"follower {number}", "cat", media_bytes=100, follows="first"), 0.0)
        with pytest.raises(Overloaded):
            scheduler.add(picture("a fourth", "cat", media_bytes=100, follows="first"), 0.0)
        for name in list(scheduler.requests):
            scheduler.abort(name, 0.0)
        scheduler.add(spec, 0.0)
        scheduler.abort("first", 0.0)
        assert scheduler.queued.expected == 0
        for number in range(5):
            scheduler.add(picture(f"again {number}", "cat", media_bytes=100), 0.0)


@pytest.mark.parametrize("name", ["client", "user"])
def test_names_are_bounded(name: str) -> None:
    assert getattr(Urgency(**{name: "x" * MAX_NAME_CHARS}), name)
    for wrong in ("x" * (MAX_NAME_CHARS + 1), 7, None):
        with pytest.raises(InvalidRequest, match=f"{name} must be a text of at most 256 characters"):
            Urgency(**{name: wrong})
