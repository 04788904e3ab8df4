import subprocess
import sys

import pytest

from epdjax.cli import COMMANDS, main
from epdjax.cli.invitation import example_picture, example_request, invitation
from epdjax.serving.limits import ServingLimits
from tests.serving.media.resolved import resolve_messages


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60)


SCRIPTS = {"profile": "profile_steps"}  # a script profile.py would stand before the standard library's module


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_scripts_are_the_sub_commands(command: str) -> None:
    script = run(f"scripts/{SCRIPTS.get(command, command.replace('-', '_'))}.py", "--help")
    console = run("-c", f"from epdjax.cli import main; main(['{command}', '--help'])")
    assert script.returncode == console.returncode == 0
    assert script.stdout.split("options:")[1] == console.stdout.split("options:")[1]


def test_help_does_not_wait_for_jax() -> None:
    code = "import sys; sys.argv = ['epdjax']; import epdjax.cli; print('jax' in sys.modules)"
    assert run("-c", code).stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--mesh", "2E1P"], "no instance for decode (D)"),
        (["--mesh", "1E1P1Dx3"], "divide the model's"),
        (["--model", "nowhere"], "'nowhere' is not a folder"),
        (["--model", "tests"], "no config.json in tests"),
        (["--max-chunk", "100"], "multiple of block_size"),
        (["--max-model-len", "10000000"], "beyond the model's own"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", *arguments]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


def test_a_taken_port_is_noticed_before_compiling(capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err


def test_the_invitation_carries_the_picture() -> None:
    request = example_request("some-model")
    [message] = resolve_messages(request["messages"], ServingLimits())
    picture = message["content"][0]["image"]
    assert picture.size == example_picture().size
    assert picture.getpixel((40, 40))[0] > 180 > picture.getpixel((128, 35))[0]
    command = invitation("0.0.0.0", 1234, "some-model").splitlines()[-1]
    assert command.startswith("curl -s http://127.0.0.1:1234/v1/chat/completions") and len(command) < 2000


def test_a_server_settles_when_all_is_built() -> None:
    code = (
        "import gc; from epdjax.serving.interpreter import settle; kept = [[i] for i in range(10_000)]\n"
        "settle(); print(gc.get_freeze_count() > 10_000, len(gc.get_objects()) < 10_000)\n"
        "import sys; print(sys.getswitchinterval() < 0.001)"
    )
    assert run("-c", code).stdout.split() == ["True"] * 3
