"""The verify ladder: start the image as a deployment would, and compare what it answers with what was evaluated.

Each rung has a verdict and a figure of its own. Limits of the log-probability rung: vLLM in bf16 against transformers
differs by 0.0001 to 0.003 nats per token in the mean and by 0.001 to 0.027 at most (measured on two small models, CPU),
while a wrong dtype, a lost adapter or another template moves the mean by tenths. So 0.02 and 0.3 leave a tenfold margin
to both sides.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tuneline.contracts.artifacts import Rung, ServingImage, SmokeReport
from tuneline.contracts.records import Probe
from tuneline.serving.container import ServerContainer, running_server
from tuneline.serving.engine import DockerError, Progress, ignore_progress
from tuneline.serving.load import load_image, stop_token_ids
from tuneline.serving.probes import read_probes
from tuneline.serving.server_client import REQUEST_SECONDS, ServedModel, ServerClient
from tuneline.serving.server_settings import EXIT_MARGIN_SECONDS, response_fingerprint

MEAN_LIMIT_NATS: Final = 0.02
MAX_LIMIT_NATS: Final = 0.3
STOP_SHARE: Final = 0.75
"""Of the answers that stopped in evaluation, the share that must stop here: in bf16 a near tie may send one of eight
greedy answers another way, while a lost end of turn lets none stop."""
DRAIN_REQUEST_SECONDS: Final = 3.0
"""How long the request in flight at SIGTERM would take: well over the 0.1 s that the signal takes to arrive."""
POLL_SECONDS: Final = 1.0


@dataclass(frozen=True)
class VerifyOptions:
    """What the ladder compares with, and what it may use.

    `max_new_tokens` is evaluation's longest answer; `drain_seconds` 0 leaves out the drain rung. A server that has not
    answered after `start_timeout_seconds` has failed (a 70B model takes some ten minutes to load and compile).
    """

    model_name: str
    weights_sha256: str
    max_new_tokens: int
    drain_seconds: int
    probes: int = 8
    port: int = 0
    gpus: bool = False
    start_timeout_seconds: float = 1200.0


class NoAnswer(Exception):
    """The server ended, or did not answer in time."""


def verify(
    image: ServingImage,
    layout: Path,
    probes_file: Path,
    options: VerifyOptions,
    progress: Progress = ignore_progress,
) -> SmokeReport:
    """Load an image, start it, climb the ladder, and remove the container.

    Args:
        image: the image's record.
        layout: its OCI layout.
        probes_file: JSONL of `Probe`.
        options: what is compared.
        progress: told about the load and the wait.

    Raises:
        UserError: Docker is not reachable, the port is in use, the base image is gone, or the probes cannot be read.
    """
    started = time.monotonic()
    probes = read_probes(probes_file, options.probes)
    load_image(image, layout, progress)
    start_seconds = 0.0
    with (
        running_server(image.reference, port=options.port, gpus=options.gpus) as server,
        ServerClient(server.port) as client,
    ):
        launched = time.monotonic()
        try:
            wait_for_answer(server, client, probes[0], options.start_timeout_seconds, progress)
            start_seconds = time.monotonic() - launched
            rungs = [Rung(name="starts", passed=True, figure=f"first answer after {start_seconds:.0f} s")]
            rungs += climb(server, client, probes, options, stop_token_ids(image, layout))
        except NoAnswer as error:
            rungs = [Rung(name="starts", passed=False, figure=str(error), detail=server.last_log_lines())]
    return SmokeReport(
        passed=all(rung.passed for rung in rungs),
        rungs=tuple(rungs),
        start_seconds=round(start_seconds, 1),
        total_seconds=round(time.monotonic() - started, 1),
        image_id=image.image_id,
    )


def wait_for_answer(
    server: ServerContainer, client: ServerClient, probe: Probe, timeout_seconds: float, progress: Progress
) -> None:
    """Wait until the server has answered one request; `/health` is green before the first forward pass.

    Raises:
        NoAnswer: the server ended or the time is over.
    """
    started = time.monotonic()
    while (waited := time.monotonic() - started) < timeout_seconds:
        status = server.exit_status()
        if status is not None:
            raise NoAnswer(f"the server ended with status {status} after {waited:.0f} s")
        try:
            client.chat(client.models()[0].name, probe.messages, max_tokens=1, tools=probe.tools)
            return
        except httpx.TransportError:  # not listening yet
            progress(int(waited), int(timeout_seconds), "waiting for the server's first answer")
            time.sleep(POLL_SECONDS)
        except httpx.HTTPStatusError as error:
            raise NoAnswer(str(error)) from error
    raise NoAnswer(f"no answer after {timeout_seconds:.0f} s")


def climb(
    server: ServerContainer,
    client: ServerClient,
    probes: Sequence[Probe],
    options: VerifyOptions,
    stop_ids: Collection[int],
) -> list[Rung]:
    """Ask every question of a server that answers; each is asked even where another failed."""
    model = client.models()[0]  # asked under its own name, so that a wrong name fails one rung and not all
    ladder: list[tuple[str, Callable[[], Rung]]] = [
        ("name", lambda: name_rung(client, options.model_name)),
        ("weights", lambda: weights_rung(client, model, probes[0], options.weights_sha256)),
        ("template", lambda: template_rung(client, model, probes)),
        ("logprobs", lambda: logprobs_rung(client, model, probes)),
        ("stops", lambda: stops_rung(client, model, probes, options.max_new_tokens, stop_ids)),
    ]
    if options.drain_seconds > 0:  # last: it ends the server
        ladder.append(("drains", lambda: drain_rung(server, client, model, probes[0], options.drain_seconds)))
    return [_step(name, question) for name, question in ladder]


def name_rung(client: ServerClient, model_name: str) -> Rung:
    """The server lists the model under the registered name, and no other."""
    names = [served.name for served in client.models()]
    return Rung(name="name", passed=names == [model_name], figure=", ".join(names), detail=f"expected {model_name}")


def weights_rung(client: ServerClient, model: ServedModel, probe: Probe, weights_sha256: str) -> Rung:
    """Answers carry the fingerprint of the merged weights."""
    found = client.chat(model.name, probe.messages, max_tokens=1, tools=probe.tools).fingerprint
    expected = response_fingerprint(weights_sha256)
    return Rung(name="weights", passed=found == expected, figure=found, detail=f"expected {expected}")


def template_rung(client: ServerClient, model: ServedModel, probes: Sequence[Probe]) -> Rung:
    """The server renders conversations to the very token ids that training did."""
    different = [
        probe.id
        for probe in probes
        if client.chat_token_ids(model.name, probe.messages, probe.tools) != probe.prompt_ids
    ]
    return Rung(
        name="template",
        passed=not different,
        figure=f"{len(probes) - len(different)} of {len(probes)} conversations rendered to training's token ids",
        detail=f"different: {', '.join(different)}" if different else "",
    )


def logprobs_rung(client: ServerClient, model: ServedModel, probes: Sequence[Probe]) -> Rung:
    """The server gives the evaluated answers the probabilities that the merged model gave them."""
    gaps = [
        abs(served - evaluated)
        for probe in probes
        for served, evaluated in zip(
            client.answer_logprobs(model.name, probe.prompt_ids, probe.answer_ids), probe.answer_logprobs, strict=True
        )
    ]
    if not gaps:
        return Rung(name="logprobs", passed=False, figure="no answer tokens", detail="every probe's answer is empty")
    mean, largest = math.fsum(gaps) / len(gaps), max(gaps)
    return Rung(
        name="logprobs",
        passed=mean <= MEAN_LIMIT_NATS and largest <= MAX_LIMIT_NATS,
        figure=f"mean {mean:.4f}, max {largest:.4f} nats over {len(gaps)} tokens",
        detail=f"limits: mean {MEAN_LIMIT_NATS}, max {MAX_LIMIT_NATS}",
    )


def stops_rung(
    client: ServerClient, model: ServedModel, probes: Sequence[Probe], max_new_tokens: int, stop_ids: Collection[int]
) -> Rung:
    """Answers that ended with a stop token in evaluation end by themselves here."""
    evaluated = [probe for probe in probes if probe.answer_ids and probe.answer_ids[-1] in stop_ids]

    def runs_on(probe: Probe) -> bool:
        room = min(
            max_new_tokens, model.max_model_len - len(probe.prompt_ids)
        )  # the server refuses a request beyond its context
        return client.chat(model.name, probe.messages, room, probe.tools).finish_reason != "stop"

    running_on = [probe.id for probe in evaluated if runs_on(probe)]
    stopped = len(evaluated) - len(running_on)
    return Rung(
        name="stops",
        passed=stopped >= STOP_SHARE * len(evaluated),
        figure=f"{stopped} of {len(evaluated)} answers that stopped in evaluation stop within {max_new_tokens} tokens",
        detail=f"running on: {', '.join(running_on)}" if running_on else "",
    )


def drain_rung(
    server: ServerContainer, client: ServerClient, model: ServedModel, probe: Probe, drain_seconds: int
) -> Rung:
    """A request in flight at SIGTERM is answered to its end, and then the server ends by itself."""
    tokens, limit_seconds = _drain_tokens(client, model, probe), drain_seconds + EXIT_MARGIN_SECONDS
    generated = client.stream_tokens(model.name, probe.prompt_ids, tokens, limit_seconds, after_first=server.terminate)
    answered = time.monotonic()
    try:
        status = server.wait(limit_seconds)
    except DockerError:
        return Rung(name="drains", passed=False, figure=f"still running {limit_seconds} s after the last answer")
    return Rung(
        name="drains",
        passed=generated == tokens and status == 0,
        figure=f"{generated} of {tokens} tokens after SIGTERM, ended {time.monotonic() - answered:.0f} s later",
        detail=f"exit status {status}",
    )


def _drain_tokens(client: ServerClient, model: ServedModel, probe: Probe) -> int:
    """Length of an answer that takes about `DRAIN_REQUEST_SECONDS` here, found by timing a short one."""
    trial_tokens, started = 8, time.monotonic()
    client.stream_tokens(model.name, probe.prompt_ids, trial_tokens, REQUEST_SECONDS, after_first=lambda: None)
    seconds_per_token = (time.monotonic() - started) / trial_tokens
    wanted = max(trial_tokens, round(DRAIN_REQUEST_SECONDS / seconds_per_token))
    return min(wanted, model.max_model_len - len(probe.prompt_ids))


def _step(name: str, question: Callable[[], Rung]) -> Rung:
    try:
        return question()
    except httpx.HTTPError as error:
        return Rung(name=name, passed=False, figure="no answer", detail=str(error) or type(error).__name__)
