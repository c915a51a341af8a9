"""Names become folders, labels and parts of what one types: one rule for all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cli import main
from bench.execution.plan import plan
from bench.foundation import registry
from bench.foundation.errors import BadInput
from bench.foundation.names import word
from bench.request.protocol_file import resolve
from bench.request.request import Request
from bench.science.defense import Defense
from bench.science.selection import select_defenses

NO_WORDS = [
    "../../x",
    "a/b",
    "/tmp/x",
    "..",
    ".x",
    "-x",
    "",
    "a b",
    "a+b",
    "a[b=1]",
    "a,b",
    "a:b",
    "a\nb",
    "ä",
    "x" * 61,
]


@pytest.mark.parametrize("name", ["quick", "epic-0.1", "X_y", "7", "x" * 60])
def test_words_are_names(name: str) -> None:
    assert word(name, "a protocol") == name


@pytest.mark.parametrize("name", [*NO_WORDS, "plugin.py"])
@pytest.mark.parametrize("kind", registry.KINDS)
def test_nothing_registers_under_what_is_no_word(kind: str, name: str) -> None:
    with pytest.raises(BadInput, match="allowed: a word of up to 60 letters.*fix: another name"):
        registry.register(kind, name)
    with pytest.raises(BadInput, match="allowed: a word"):
        registry.announce(kind, {name: ("nowhere", "a card")})


@pytest.mark.parametrize("name", [name for name in NO_WORDS if name])
def test_a_protocol_whose_name_is_no_word_is_refused_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "mine.toml", tmp_path / "out"
    file.write_text(f'name = "{name}"\nmodel = "convnet"\n'.replace("a\nb", "a\\nb"), encoding="utf-8")
    assert main(["run", "--protocol", str(file), "--attack", "none", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "mine.toml" in said and "fix: another `name` in the file" in said
    assert sorted(tmp_path.iterdir()) == [file]


def test_the_file_of_a_plugin_whose_name_is_no_word_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from bench.plugin import Defense, register\n@register('defense', '../up')\nclass Up(Defense):\n    pass\n"
    )
    assert main(["run", "--attack", "none", "--defense", str(file), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "mine.py': a plug-in (defense) cannot be called '../up'; allowed: a word" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_protocol_without_a_name_is_called_as_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('model = "convnet"\n')
    assert resolve(str(tmp_path / "mine.toml"), [])[0].name == "mine"
    (tmp_path / "my own.toml").write_text('model = "convnet"\n')
    with pytest.raises(BadInput, match=r"cannot be called 'my own'.*fix: another `name` in the file"):
        resolve(str(tmp_path / "my own.toml"), [])


@pytest.fixture
def with_long_names(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Registers defenses of 60 letters each."""
    registry.names("defense")
    monkeypatch.setattr(registry, "_found", {kind: dict(found) for kind, found in registry._found.items()})

    def make(count: int) -> list[str]:
        names = [letter * 60 for letter in "abcdef"[:count]]
        for name in names:
            registry.register("defense", name)(type("Long", (Defense,), {}))
        return names

    return make


def test_a_composition_whose_name_no_file_can_carry_is_refused(with_long_names: Callable[..., list[str]]) -> None:
    three = with_long_names(3)
    two = three[:2]
    assert select_defenses(["+".join(two)], None)[0].label == "+".join(two)
    with pytest.raises(BadInput, match="182 letters; allowed: up to 130"):
        select_defenses(["+".join(three)], None)


def test_a_protocol_may_have_settings_for_the_plugin_of_a_file(tmp_path: Path) -> None:
    """By its name, once the run names the file, or by the file."""
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from bench.plugin import Defense, Field, Settings, register\n"
        "class Own(Settings):\n    mu: int = Field(1, description='a setting')\n"
        "@register('defense', 'of-a-file')\n"
        "class Mine(Defense):\n    Settings = Own\n"
    )
    protocol = tmp_path / "mine.toml"
    for section in ("of-a-file", str(plugin)):
        protocol.write_text(
            'model = "convnet"\n[dataset]\nname = "photographs"\n[threat]\nbudget = 0.05\n'
            f'[defense."{section}"]\nmu = 7\n'
        )
        asked = Request(protocols=(str(protocol),), attacks=("none",), defenses=(str(plugin),), only=True)
        assert plan([asked]).cells[0].defense.settings.as_dict() == {"mu": 7}
