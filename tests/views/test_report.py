"""The table at the end of a run: roles, intervals, paired comparisons."""

from __future__ import annotations

from bench.views.report import table


def record(attack, defense, trial, success, accuracy=0.9, status="done"):
    return {
        "attack": attack, "defense": defense, "protocol": "p", "cell": f"{attack}/{defense}", "trial": trial,
        "status": status, "success": success, "clean_accuracy": accuracy, "seconds": {"craft": 1.0, "train": 2.0},
    }  # fmt: skip


def cell(attack, defense, successes, **more):
    return [record(attack, defense, trial, success, **more) for trial, success in enumerate(successes)]


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def test_attacks_are_compared_with_the_control_and_defenses_with_the_undefended_victim():
    text = table(cell("none", "none", [0, 0, 0, 0]) + cell("gm", "none", [1, 1, 1, 0]) + cell("gm", "d", [0, 1, 0, 0]))
    compared = lines_with(text, "against")
    assert [line.partition(":")[0] for line in compared] == [
        "gm x none against none x none",
        "gm x d against gm x none",
    ]
    assert "+75 points" in compared[0] and "-50 points" in compared[1]
    assert all("paired, 4 trials" in line for line in compared)


def test_a_comparison_takes_only_trials_that_both_finished():
    control = cell("none-trigger", "none", [0.1, 0.2, 0.1])
    attack = cell("sleeper", "none", [0.5, 0.9, 0.7])
    attack[1] = record("sleeper", "none", 1, None, accuracy=None, status="failed")
    (line,) = lines_with(table(control + attack), "against")
    assert "+50 points" in line and "2 trials" in line
    assert "1.2/2 (1 failed)" in lines_with(table(control + attack), "undefended")[0]


def test_the_control_with_a_trigger_is_a_control():
    text = table(cell("none-trigger", "none", [0.05, 0.1]) + cell("sleeper", "none", [0.5, 0.9]))
    assert "clean control" in text and "base rate (clean control): 8 %" in text


def test_a_run_without_a_control_compares_what_it_has():
    assert not lines_with(table(cell("gm", "none", [1, 0])), "against")
    assert len(lines_with(table(cell("gm", "none", [1, 0]) + cell("gm", "d", [0, 0])), "against")) == 1


def test_with_both_controls_every_attack_is_compared_with_its_own():
    backdoor = cell("sleeper", "none", [0.5, 0.9])
    for one in backdoor:
        one["outcome"] = {"backdoor": {"asr_all": one["success"]}}
    controls = cell("none", "none", [0, 0]) + cell("none-trigger", "none", [0.1, 0.1])
    text = table(controls + cell("gm", "none", [1, 1]) + backdoor)
    assert [line.partition(":")[0] for line in lines_with(text, "against")] == [
        "gm x none against none x none",
        "sleeper x none against none-trigger x none",
    ]
    assert "(clean control): 0 %" in text and "(clean control, with a trigger): 10 %" in text
