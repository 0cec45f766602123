"""What a person sees while a stage runs."""

import io
import threading
from collections.abc import Mapping

import pytest
from rich.console import Console

from flows import progress, system_metrics
from flows.progress import StageBar
from flows.progress_words import fitted, in_words, line_of
from tuneline.contracts.jobs import ProgressEvent

FIGURES = {
    "loss": 1.23456,
    "learning_rate": 1.9e-4,
    "grad_norm": 0.8123,
    "tokens": 1_000_000.0,
    "tokens_per_second": 11240.3,
    "seconds": 100.0,
    "seconds_left": 1921.0,
    "peak_memory_bytes": 12.4 * 2**30,
    "share_of_peak_4n": 0.4123,
}
STEP = ProgressEvent(done=400, planned=1000, unit="steps", metrics=FIGURES)
WORDS = "loss 1.235, lr 1.9e-04, 11,240 tokens/s, 41% of peak (4N), 12.4 GiB, gradient norm 0.81"


def screen(event: ProgressEvent, width: int) -> list[str]:
    """The lines of the bar after an event, as a terminal of this width shows them."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    bar = StageBar("train", console)
    bar.listen(event)
    with console.capture() as captured:
        for part in bar.get_renderables():
            console.print(part)
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [60, 80, 160])
def test_a_step_takes_two_lines_of_the_terminal_however_narrow_and_no_figure_is_cut_in_two(width: int) -> None:
    bar, figures = screen(STEP, width)
    assert all(len(line) <= width for line in (bar, figures))
    assert bar.endswith("400/1,000 steps 32 min left")
    assert f"{WORDS}, ".startswith(f"{figures.strip()}, ")
    assert ("41% of peak (4N)" in figures, "12.4 GiB" in figures, "0.81" in figures) == (True, width > 60, width > 80)


def test_a_result_on_the_way_stays_on_the_screen_when_the_bar_goes_on() -> None:
    shown = io.StringIO()
    bar = StageBar("train", Console(file=shown, width=80, force_terminal=True, color_system=None))
    bar.listen(ProgressEvent(done=0, planned=9, unit="steps", note="preflight: measuring memory and speed"))
    assert shown.getvalue() == ""
    bar.listen(ProgressEvent(done=0, planned=9, unit="steps", note="preflight 1.2 GiB", metrics={"preflight_hours": 2}))
    bar.listen(STEP)
    assert shown.getvalue() == "preflight 1.2 GiB\n"


def test_a_long_note_ends_at_a_comma() -> None:
    assert fitted("preflight: 12.42 GiB (planned 14.10), 11,240 tokens/s (planned 12,100)", 60) == (
        "preflight: 12.42 GiB (planned 14.10)"
    )
    assert fitted("preflight", 60) == "preflight"
    assert fitted("a, b", 4) == "a, b"
    assert fitted("no comma at all", 4) == "no comma at all"


def test_a_line_without_a_terminal_says_the_same_with_the_time_left() -> None:
    assert line_of(STEP) == f"400/1,000 steps, 32 min left, {WORDS}"
    assert line_of(STEP.model_copy(update={"done": 1000})) == f"1,000/1,000 steps, {WORDS}"
    assert line_of(ProgressEvent(done=3, planned=0, unit="rows", note="reading")) == "3 rows, reading"
    assert line_of(ProgressEvent(done=3, planned=9, unit="tensors")) == "3/9 tensors"


def test_a_full_training_and_a_preference_objective_name_their_own_figures() -> None:
    figures = {"loss": 0.5, "share_of_peak_6n": 0.5, "reward_accuracy": 0.625, "something_new": 0.123456}
    event = ProgressEvent(done=1, planned=2, unit="steps", metrics=figures)
    assert line_of(event) == "1/2 steps, loss 0.500, 50% of peak (6N), 62% of pairs right, something new 0.1235"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (99.0, "99 s"), (720.0, "12 min"), (11_100.0, "3 h 05 min"), (187_200.0, "2 d 4 h")],
)
def test_an_estimated_time_has_no_more_figures_than_it_is_worth(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_prefect_shows_the_same_words(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[float, str]] = []
    artifacts = "prefect.artifacts"
    monkeypatch.setattr(f"{artifacts}.create_progress_artifact", lambda percent, key, description: key)
    monkeypatch.setattr(
        f"{artifacts}.update_progress_artifact",
        lambda artifact, percent, description: shown.append((percent, f"{artifact}: {description}")),
    )
    monkeypatch.setattr(progress, "UI_SECONDS", 0.0)
    monkeypatch.delenv(progress.TERMINAL, raising=False)
    with progress.shown("train") as show:
        show(ProgressEvent(done=0, planned=1000, unit="steps", note="loading"))
        show(STEP)
    assert shown == [(40.0, f"train-progress: 400/1,000 steps, 32 min left, {WORDS}")]


class Samples:
    """Keeps what it is given, and says when there are two."""

    def __init__(self) -> None:
        self.kept: list[Mapping[str, float]] = []
        self.two = threading.Event()

    def log_sample(self, metrics: Mapping[str, float]) -> None:
        self.kept.append(metrics)
        if len(self.kept) == 2:
            self.two.set()


def test_the_machine_is_sampled_while_a_training_runs_and_no_longer() -> None:
    samples = Samples()
    with system_metrics.system_metrics(samples, seconds=0.01):
        assert samples.two.wait(10)
    assert "system-metrics" not in {thread.name for thread in threading.enumerate()}
    sample = samples.kept[-1]
    assert 0 <= sample["system/cpu_utilization_percentage"] <= 100
    assert sample["system/system_memory_usage_megabytes"] > 100
    assert all(name.startswith("system/") for name in sample)


def test_a_sample_that_cannot_be_logged_ends_the_sampling_and_not_the_training(caplog) -> None:
    class Broken:
        def log_sample(self, metrics: Mapping[str, float]) -> None:
            tried.set()
            raise ConnectionError("away")

    tried = threading.Event()
    with system_metrics.system_metrics(Broken(), seconds=0.01):
        assert tried.wait(10)
    assert "the system metrics end here" in caplog.text


def test_gpu_figures_bear_the_names_and_units_of_mlflows_system_metrics() -> None:
    answer = "0, 97, 40960, 301.25\n1, 3, 512, [N/A]\n"  # nvidia-smi with --format=csv,noheader,nounits; memory in MiB
    assert system_metrics.read_gpu_figures(answer) == {
        "system/gpu_0_utilization_percentage": 97.0,
        "system/gpu_0_memory_usage_megabytes": pytest.approx(42949.67296),
        "system/gpu_0_power_usage_watts": 301.25,
        "system/gpu_1_utilization_percentage": 3.0,
        "system/gpu_1_memory_usage_megabytes": pytest.approx(536.870912),
    }


def test_a_machine_without_nvidias_driver_has_no_gpu_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert system_metrics.gpu_figures() == {}
