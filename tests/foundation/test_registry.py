"""The registry: names, variants, plug-in files, and errors in one line."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.foundation import registry
from bench.foundation.errors import BadInput
from bench.science.defense import Defense

DEFENSE = """
    from bench.foundation.registry import register
    from bench.science.defense import Defense

    @register("defense", "{name}")
    class Mine(Defense):
        '''A card of my own.'''
"""


@pytest.fixture(autouse=True)
def separate_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plug-ins of one test are not seen by the next."""
    for kind in registry.KINDS:
        registry.names(kind)
    monkeypatch.setattr(registry, "_found", {kind: dict(found) for kind, found in registry._found.items()})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def file(text: str, name: str = "mine.py") -> str:
        path = tmp_path / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    return file


def refusal(name: str, kind: str = "defense") -> str:
    with pytest.raises(BadInput) as caught:
        registry.find(kind, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "some"),
    [("attack", {"gm", "none", "random-noise"}), ("defense", {"none", "friends-b", "noise-u"}),
     ("dataset", {"photographs"}), ("model", {"convnet", "resnet18", "lenet", "alexnet", "vgg11", "mobilenet-v2"})],
)  # fmt: skip
def test_the_shipped_plugins_are_found(kind: str, some: set[str]) -> None:
    names = registry.names(kind)
    assert some <= set(names)
    assert names == sorted(names)


def test_an_unknown_name_offers_the_nearest() -> None:
    assert refusal("frends-b") == "unknown defense 'frends-b'; did you mean 'friends-b'?"


def test_a_variant_is_a_name_with_settings() -> None:
    plain, variant = registry.find("defense", "friends-u"), registry.find("defense", "friends-b")
    assert plain.make is variant.make
    assert (plain.variant, variant.variant) == ({"noise": "uniform"}, {"noise": "bernoulli"})


def test_every_shipped_attack_and_defense_has_a_card() -> None:
    for kind in ("attack", "defense"):
        for name in registry.names(kind):
            assert len(registry.find(kind, name).card.split()) > 5, name


def test_a_function_without_docstring_takes_the_card_of_its_module() -> None:
    card = registry.Plugin("model", "x", registry.find("model", "lenet").make).card
    assert card.startswith("conv 6")
    assert registry.Plugin("model", "x", make_undocumented()).card == (__doc__ or "")


def make_undocumented() -> Callable[..., None]:
    def bare() -> None:
        pass

    return bare


def test_a_file_brings_its_plugin(write: Callable[..., str]) -> None:
    plugin = registry.find("defense", write(DEFENSE.format(name="mine")))
    assert plugin.name == "mine"
    assert issubclass(plugin.make, Defense)
    assert plugin.card == "A card of my own."
    assert registry.find("defense", "mine") is plugin


def test_a_file_named_twice_is_loaded_once(write: Callable[..., str]) -> None:
    path = write(DEFENSE.format(name="mine"))
    assert registry.find("defense", path) is registry.find("defense", path)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    assert "existing .py file" in refusal(str(tmp_path / "absent.py"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("def broken(:", "SyntaxError"), ("import no_such_package_at_all", "ModuleNotFoundError"), ("1 / 0", "division")],
)
def test_a_broken_file_is_one_line_with_file_and_reason(write: Callable[..., str], text: str, reason: str) -> None:
    path = write(text)
    text = refusal(path)
    assert path in text
    assert reason in text


def test_a_file_that_was_broken_can_be_loaded_once_it_is_mended(write: Callable[..., str]) -> None:
    refusal(write("1 / 0"))
    assert registry.find("defense", write(DEFENSE.format(name="mine"))).name == "mine"


def test_a_file_that_breaks_after_registering_leaves_no_name_behind(write: Callable[..., str]) -> None:
    refusal(write(DEFENSE.format(name="half-made") + "\n    raise RuntimeError('later')\n"))
    assert "half-made" not in registry.names("defense")


def test_a_file_that_registers_nothing_says_how_to(write: Callable[..., str]) -> None:
    assert '@register("defense", "my-name")' in refusal(write("x = 1"))


def test_a_file_with_a_plugin_of_another_kind_registers_none_of_this(write: Callable[..., str]) -> None:
    assert "registers no attack" in refusal(write(DEFENSE.format(name="mine")), kind="attack")


def test_two_files_cannot_share_a_name(write: Callable[..., str]) -> None:
    registry.find("defense", write(DEFENSE.format(name="same"), "one.py"))
    assert "two defenses are called 'same'" in refusal(write(DEFENSE.format(name="same"), "two.py"))


def test_a_file_cannot_take_the_name_of_a_shipped_plugin(write: Callable[..., str]) -> None:
    shipped = registry.find("defense", "friends-b")
    assert "two defenses are called 'friends-b'" in refusal(write(DEFENSE.format(name="friends-b")))
    assert registry.find("defense", "friends-b") is shipped


VARIANT = """
    from bench.foundation.registry import register
    from bench.defenses.friends import Friends

    register("defense", "{name}", noise="uniform", mu=4)(Friends)
"""


def test_a_file_may_hold_a_variant_of_a_shipped_class(write: Callable[..., str]) -> None:
    plugin = registry.find("defense", write(VARIANT.format(name="friends-small")))
    assert (plugin.name, plugin.variant) == ("friends-small", {"noise": "uniform", "mu": 4})


def test_a_file_cannot_change_the_settings_of_a_shipped_variant(write: Callable[..., str]) -> None:
    shipped = registry.find("defense", "friends-b")
    refusal(write(VARIANT.format(name="friends-b")))
    assert registry.find("defense", "friends-b") is shipped


def test_a_broken_third_party_package_does_not_take_the_tool_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        name, value, dist = "theirs", "theirs.module", None

        def load(self) -> None:
            raise RuntimeError("cannot\nstart")

    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [Broken()])
    monkeypatch.setattr(registry, "_loaded", set())
    assert "friends-b" in registry.names("defense")
    said = capsys.readouterr().err
    assert "plug-in 'theirs' (theirs.module) could not be loaded: RuntimeError: cannot start" in said


def test_a_file_cannot_use_one_name_twice(write: Callable[..., str]) -> None:
    assert "two defenses are called 'mine'" in refusal(write(DEFENSE.format(name="mine") + DEFENSE.format(name="mine")))


def test_what_is_announced_is_listed_without_importing_it() -> None:
    code = (
        "import sys; from bench.foundation import registry\n"
        "for kind in registry.ANNOUNCED:\n"
        "    assert all(registry.find(kind, name).card for name in registry.names(kind))\n"
        "assert not {'torch', 'numpy', 'matplotlib', 'distributed', 'submitit'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def test_a_library_that_an_announced_name_needs_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    monkeypatch.delitem(sys.modules, "bench.execution.engines.slurm", raising=False)
    with pytest.raises(BadInput, match="engine 'slurm' needs submitit.*fix: pip install submitit"):
        _ = registry.find("engine", "slurm").make
