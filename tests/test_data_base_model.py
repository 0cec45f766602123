from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_model import make_tiny_base

from tuneline.contracts.errors import UserError
from tuneline.contracts.hashing import HashCache
from tuneline.contracts.spec import ModelSpec
from tuneline.data.base_model import locate_base


def locate(path: Path, **fields: str) -> str:
    return locate_base(ModelSpec(base=str(path), **fields), HashCache(path.parent / "hashes.json")).sha256


def remove(pattern: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return change


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (remove("*.safetensors"), "no *.safetensors weights"),
        (remove("tokenizer.json"), "the folder has no tokenizer"),
        (remove("config.json"), "the folder has no config.json"),
        (remove("chat_template.jinja"), "the tokenizer has no chat template"),
        (remove("*"), "the folder has no tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_says_which(tmp_path: Path, damage: Callable[[Path], None], what: str) -> None:
    base = make_tiny_base(tmp_path / "base")
    damage(base)
    with pytest.raises(UserError) as caught:
        locate(base)
    assert any(what in problem.what for problem in caught.value.problems)


def test_another_template_makes_up_for_a_missing_one(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    remove("chat_template.jinja")(base)
    template = tmp_path / "chatml.jinja"
    template.write_text("{{ messages }}")
    assert locate(base, chat_template=str(template))


def test_a_path_that_is_no_folder_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        locate(tmp_path / "absent")


def test_the_hash_covers_bytes_and_survives_the_cache(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    first = locate(base)
    assert locate(base) == first
    config = base / "config.json"
    config.write_text(config.read_text() + " ")
    assert locate(base) != first
