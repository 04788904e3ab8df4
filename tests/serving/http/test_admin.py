"""What only the operator may do."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from epdjax.serving.llm import AsyncLLM
from tests.models.tiny import make_tiny_checkpoint
from tests.serving.http.conftest import BUCKETS, CONTEXT
from tests.serving.http.scripted import ScriptedEngine
from tests.serving.http.servers import RunningServer, running

KEY = {"Authorization": "Bearer open sesame"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running(ScriptedEngine(), admin_key="open sesame") as server:
        yield server


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "open sesame"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_key_nothing(server: RunningServer, method: str, headers: dict[str, str]) -> None:
    body = {"instance": "i1", "roles": "D"}
    answer = httpx.request(method, f"{server.url}/admin/roles", headers=headers, json=body)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "not_authorised"


def test_with_the_key(server: RunningServer) -> None:
    assert httpx.get(f"{server.url}/admin/roles", headers=KEY).json() == {"mesh": "1E1P1D"}
    body = {"instance": "i1", "roles": "PD", "dry_run": True}
    answer = httpx.post(f"{server.url}/admin/roles", headers=KEY, json=body)
    assert answer.json() == body | {"devices": 1}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"instance": "i7", "roles": "D"}, 409, "there is no instance 'i7'"),
        ({"roles": "D"}, 400, "instance"),
        ({"instance": "i1", "roles": 3}, 400, "roles"),
        ({"instance": "i1", "roles": "D", "when": "now"}, 400, "when"),
    ],
)
def test_bad_input(server: RunningServer, body: dict, status: int, says: str) -> None:
    answer = httpx.post(f"{server.url}/admin/roles", headers=KEY, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_without_a_key_there_is_no_admin() -> None:
    with running(ScriptedEngine()) as server:
        assert httpx.get(f"{server.url}/admin/roles", headers=KEY).status_code == 404


def test_roles_of_a_real_engine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A prefill instance decodes as well, then the decoder encodes; answers stay the same."""
    model = make_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")
    llm = AsyncLLM(model, "1E1P1D", max_model_len=CONTEXT, buckets=BUCKETS)
    with running(llm, admin_key="open sesame") as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="x") as ai:

        def answer() -> str | None:
            messages = [{"role": "user", "content": "hello"}]
            made = ai.chat.completions.create(model=llm.model_name, messages=messages, max_tokens=8, temperature=0)  # type: ignore[arg-type]
            return made.choices[0].message.content

        def switch(**body: object) -> httpx.Response:
            return httpx.post(f"{server.url}/admin/roles", headers=KEY, json=body, timeout=60)

        before = answer()
        assert switch(instance="i1", roles="D").status_code == 409
        planned = switch(instance="i1", roles="PD", dry_run=True).json()
        assert planned["after"] == {"i1": {"roles": "PD", "devices": [1]}}
        assert httpx.get(f"{server.url}/health").json()["mesh"] == "1E1P1D"
        assert switch(instance="i1", roles="PD").json()["offload_s"] >= 0
        assert switch(instance="i2", roles="E").status_code == 200
        assert httpx.get(f"{server.url}/health").json()["mesh"] == "2E1PD"
        assert answer() == before
        told = httpx.get(f"{server.url}/admin/roles", headers=KEY).json()
        assert len(told["switches"]) == 2 and told["role_switching"] == "off"
