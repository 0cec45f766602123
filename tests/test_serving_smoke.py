"""The verify ladder against the real vLLM image, on the quickstart's base model and on copies of it made wrong."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from serving_images import PROVENANCE, SPEC, WEIGHTS_SHA256, has_image, merged_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneline.contracts.artifacts import Rung, ServingImage
from tuneline.contracts.records import Probe
from tuneline.serving.base_image import read_base_image
from tuneline.serving.container import LABEL, running_server
from tuneline.serving.image import package_model
from tuneline.serving.load import load_image, stop_token_ids
from tuneline.serving.probes import read_probes
from tuneline.serving.server_client import ServedModel, ServerClient
from tuneline.serving.smoke import (
    VerifyOptions,
    logprobs_rung,
    stops_rung,
    template_rung,
    verify,
    wait_for_answer,
    weights_rung,
)

BASE_IMAGE = "tuneline/vllm-cpu:0.32.0"
BASE_MODEL = Path(__file__).resolve().parents[1] / "examples" / "quickstart" / "base"
QUESTIONS = ("I am still waiting on my card.", "My payment was declined.", "How do I change my PIN?")
MAX_NEW_TOKENS = 24

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not has_image(BASE_IMAGE), reason=f"the engine has no {BASE_IMAGE}"),
]


@dataclass(frozen=True)
class Served:
    """A packaged model, its probes, and what the ladder compares with."""

    image: ServingImage
    layout: Path
    probes_file: Path
    options: VerifyOptions

    @property
    def probes(self) -> list[Probe]:
        return read_probes(self.probes_file, self.options.probes)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Package the quickstart's base model; its own answers by transformers are what the server must repeat."""
    folder = tmp_path_factory.mktemp("served")
    probes_file = folder / "probes.jsonl"
    stop_ids = write_probes(probes_file)
    spec = SPEC.model_copy(update={"base_image": BASE_IMAGE, "max_model_len": 256})
    base = read_base_image(BASE_IMAGE, folder / "cache")
    image = package_model(merged_model(stop_ids), BASE_MODEL, BASE_IMAGE, base, spec, PROVENANCE, folder)
    options = VerifyOptions(PROVENANCE.model_name, WEIGHTS_SHA256, MAX_NEW_TOKENS, drain_seconds=spec.drain_seconds)
    yield Served(image, folder / ServingImage.LAYOUT, probes_file, options)
    subprocess.run(["docker", "rmi", "--force", image.reference], capture_output=True, check=False)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[ServerClient]:
    """A client of the started server, which has answered."""
    load_image(served.image, served.layout)
    with running_server(served.image.reference) as server, ServerClient(server.port) as opened:
        wait_for_answer(server, opened, served.probes[0], 600.0, lambda done, total, what: None)
        yield opened


@pytest.fixture
def model(client: ServerClient) -> ServedModel:
    return client.models()[0]


def write_probes(file: Path) -> tuple[int, ...]:
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype="auto").eval()
    stop_ids = model.generation_config.eos_token_id
    with file.open("w", encoding="utf-8") as stream, torch.inference_mode():
        for question in QUESTIONS:
            messages = [{"role": "user", "content": question}]
            prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            whole = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[0]
            logprobs = torch.log_softmax(model(whole[None]).logits[0].float(), -1)
            answer = whole[len(prompt) :].tolist()
            scored = [logprobs[len(prompt) - 1 + index, token].item() for index, token in enumerate(answer)]
            probe = {"messages": messages, "prompt_ids": prompt, "answer_ids": answer, "answer_logprobs": scored}
            stream.write(json.dumps({"id": question, **probe}) + "\n")
    return tuple(stop_ids) if isinstance(stop_ids, list) else (stop_ids,)


def changed(probe: Probe, **changes: object) -> Probe:
    return Probe.model_validate(probe.model_dump() | changes)


def test_an_image_of_what_was_evaluated_passes_every_rung_and_leaves_no_container(served: Served) -> None:
    report = verify(served.image, served.layout, served.probes_file, served.options)
    assert [rung for rung in report.rungs if not rung.passed] == []
    assert [rung.name for rung in report.rungs] == [
        "starts",
        "name",
        "weights",
        "template",
        "logprobs",
        "stops",
        "drains",
    ]
    assert (report.passed, report.image_id) == (True, served.image.image_id)
    label = f"label={LABEL}={served.image.reference}"
    assert subprocess.check_output(["docker", "ps", "--all", "--quiet", "--filter", label]) == b""


def test_answers_of_other_weights_are_told_by_their_fingerprint(
    client: ServerClient, model: ServedModel, served: Served
) -> None:
    assert weights_rung(client, model, served.probes[0], WEIGHTS_SHA256).passed
    assert not weights_rung(client, model, served.probes[0], "0" * 64).passed


def test_one_token_more_in_training_s_rendering_fails_the_template_rung_and_names_the_probe(
    client: ServerClient, model: ServedModel, served: Served
) -> None:
    first, *rest = served.probes
    rung = template_rung(client, model, [changed(first, prompt_ids=[*first.prompt_ids, 5]), *rest])
    assert (rung.passed, rung.detail) == (False, f"different: {first.id}")


def test_probabilities_off_by_a_third_of_a_nat_in_one_token_fail_the_logprobs_rung(
    client: ServerClient, model: ServedModel, served: Served
) -> None:
    first = served.probes[0]
    head, *tail = first.answer_logprobs
    shifted = changed(first, answer_logprobs=[head - 0.35, *tail])
    assert logprobs_rung(client, model, [first]).passed
    assert not logprobs_rung(client, model, [shifted]).passed


def test_answers_cut_before_their_end_fail_the_stops_rung(
    client: ServerClient, model: ServedModel, served: Served
) -> None:
    def climb(max_new_tokens: int) -> Rung:
        stop_ids = stop_token_ids(served.image, served.layout)
        return stops_rung(client, model, served.probes, max_new_tokens, stop_ids)

    assert climb(MAX_NEW_TOKENS).passed
    assert not climb(1).passed


def test_a_damaged_model_fails_the_first_rung_with_the_servers_last_words(served: Served, tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    for path in BASE_MODEL.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    (broken / "config.json").write_text("{}", encoding="utf-8")
    base = read_base_image(BASE_IMAGE, served.layout.parent / "cache")
    image = package_model(merged_model(), broken, BASE_IMAGE, base, SPEC, PROVENANCE, tmp_path)
    try:
        report = verify(image, tmp_path / ServingImage.LAYOUT, served.probes_file, served.options)
    finally:
        subprocess.run(["docker", "rmi", "--force", image.reference], capture_output=True, check=False)
    assert (report.passed, [rung.name for rung in report.rungs]) == (False, ["starts"])
    assert report.rungs[0].figure.startswith("the server ended with status 1")
    assert "model_type" in report.rungs[0].detail
