"""A verify container is always removed, and says why it could not start."""

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_images import built_image, docker_output, has_image

from tuneline.contracts.errors import ServiceUnavailable, UserError
from tuneline.contracts.records import Probe
from tuneline.serving.container import LABEL, remove_leftovers, running_server
from tuneline.serving.engine import DockerError, docker, require_engine
from tuneline.serving.server_client import ServerClient
from tuneline.serving.smoke import NoAnswer, wait_for_answer

PYTHON = "python:3.11-slim"
needs_python_image = pytest.mark.skipif(not has_image(PYTHON), reason=f"the engine has no {PYTHON}")
PROBE = Probe(id="p", messages=(), prompt_ids=[1], answer_ids=[2], answer_logprobs=[-0.1])
STARTED = """
import sys
from tuneline.serving.container import running_server
with running_server(sys.argv[1]) as server:
    print(server.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def web_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    lines = f'FROM {PYTHON}\nENTRYPOINT ["python3", "-m", "http.server", "8000", "--directory", "/usr/share"]\n'
    with built_image("tuneline-test/web:1", lines, tmp_path_factory.mktemp("web")) as tag:
        yield tag


@pytest.fixture(scope="module")
def dying_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = "import sys; print('no such model'); sys.exit(3)"
    lines = f'FROM {PYTHON}\nENTRYPOINT ["python3", "-c", "{program}"]\n'
    with built_image("tuneline-test/dying:1", lines, tmp_path_factory.mktemp("dying")) as tag:
        yield tag


def containers_of(reference: str) -> list[str]:
    return docker_output("ps", "--all", "--quiet", "--filter", f"label={LABEL}={reference}").split()


@needs_python_image
def test_a_container_answers_on_a_free_port_of_this_machine_and_is_removed_after(web_image: str) -> None:
    with running_server(web_image) as server:
        assert server.exit_status() is None
        assert docker_output("port", server.name).endswith(f"127.0.0.1:{server.port}")
    assert containers_of(web_image) == []


@needs_python_image
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_container_is_removed_whatever_ends_its_use(web_image: str, failure: type[BaseException]) -> None:
    with pytest.raises(failure), running_server(web_image):
        raise failure
    assert containers_of(web_image) == []


@needs_python_image
def test_what_a_killed_process_left_behind_is_found_and_removed(web_image: str) -> None:
    command = [sys.executable, "-c", STARTED, web_image]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("tuneline-verify-")
        process.send_signal(signal.SIGKILL)
    left = containers_of(web_image)
    assert len(left) == 1
    assert remove_leftovers(web_image) == left
    assert containers_of(web_image) == []


@needs_python_image
def test_a_port_in_use_is_an_error_that_names_the_port(web_image: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(UserError, match=f"port {port} of 127.0.0.1 is in use"),
            running_server(web_image, port=port),
        ):
            pass
    assert containers_of(web_image) == []


@needs_python_image
def test_a_server_that_dies_ends_the_wait_at_once_and_its_last_lines_are_kept(dying_image: str) -> None:
    with running_server(dying_image) as server, ServerClient(server.port) as client:
        with pytest.raises(NoAnswer, match="ended with status 3"):
            wait_for_answer(server, client, PROBE, 600.0, lambda done, total, what: None)
        assert server.last_log_lines() == "no such model"


@needs_python_image
def test_a_server_that_answers_something_else_ends_the_wait_with_its_words(web_image: str) -> None:
    with (
        running_server(web_image) as server,
        ServerClient(server.port) as client,
        pytest.raises(NoAnswer, match="/v1/models answered 404"),
    ):
        wait_for_answer(server, client, PROBE, 60.0, lambda done, total, what: None)


def test_an_engine_that_does_not_answer_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    if shutil.which("docker") is None:
        pytest.skip("there is no docker command")
    with pytest.raises(ServiceUnavailable, match="Docker not reachable"):
        require_engine()
    with pytest.raises(ServiceUnavailable, match="Docker not reachable"):
        docker(["ps"])


def test_a_machine_without_the_docker_command_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceUnavailable, match="there is no `docker` command"):
        require_engine()


@needs_python_image
def test_a_refusal_carries_the_engines_own_words() -> None:
    with pytest.raises(DockerError, match="No such container"):
        docker(["inspect", "--type", "container", "tuneline-test-absent"])
