"""The house keeps its shape: who may own names, what importing loads, where packages are."""

import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("tuneline", "flows", "training", "evaluation")
LONGEST_MODULE_LINES = 400


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]


def test_no_other_distribution_owns_our_import_names() -> None:
    owners = packages_distributions()  # an editable installation of ours owns none by name
    assert {name: owners[name] for name in PACKAGES if set(owners.get(name, ())) - {"tuneline"}} == {}


def test_no_flow_file_hides_a_package_from_prefect_which_loads_it_under_its_bare_name() -> None:
    names = {re.split(r"[-=<>\[;]", line)[0].lower().replace("-", "_") for line in dependency_lines()}
    taken = names | set(PACKAGES) | set(sys.stdlib_module_names)
    assert [path.name for path in (ROOT / "flows").glob("*.py") if path.stem in taken] == []


def dependency_lines() -> list[str]:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("flows.finetune", ("torch", "transformers", "trl", "peft", "mlflow", "datasets")),
        ("tuneline.cli.main", ("torch", "transformers", "mlflow", "prefect", "datasets")),
    ],
)
def test_importing_stays_light(module: str, absent: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert output.stdout.strip() == "[]"


def test_every_package_says_it_is_one_and_tests_and_configs_do_not() -> None:
    folders = {path.parent for path in modules()}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []
    assert not (ROOT / "tests" / "__init__.py").exists()
    assert not any((ROOT / "configs").glob("*.py"))


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_MODULE_LINES} == {}


def test_the_served_vllm_reads_what_the_pinned_transformers_writes() -> None:
    pinned = {name: version for name, _, version in (line.partition("==") for line in dependency_lines())}
    version = tuple(int(part) for part in pinned["transformers"].split("."))
    # vllm 0.32.0's own metadata: transformers >=5.16.1,<5.20 and torch ==2.13.0
    assert (5, 16, 1) <= version < (5, 20)
    assert pinned["torch"] == "2.13.0"
    dockerfile = (ROOT / "docker" / "vllm-cpu.Dockerfile").read_text(encoding="utf-8")
    assert "0.32.0" in dockerfile
    assert "torch==2.13.0" in dockerfile
