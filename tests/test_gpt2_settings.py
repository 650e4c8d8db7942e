"""gpt2/settings.py: every option is documented, and a bad one is named at once."""

import math
from dataclasses import fields, replace

import pytest

from rlhf_mini.gpt2.settings import FAST, Settings, from_environment, parse
from rlhf_mini.training import PPOSettings

NUMBERS = [f.name for f in fields(Settings) if type(f.default) in (int, float)]
MAY_BE_ZERO = {"seed", "flip", "target_kl", "gamma", "lam"}


def bad_values(name):
    kind = type(getattr(Settings, name))
    yield from ([-1] if kind is int else [-1.0, math.nan])
    if name not in MAY_BE_ZERO:
        yield kind(0)
    if kind is int:
        yield 2.5


@pytest.mark.parametrize(
    "name, value",
    [(n, v) for n in NUMBERS for v in bad_values(n)]
    + [
        ("method", "trpo"), ("reward", "silver"), ("device", "abacus"),
        ("answers", 1), ("group", 1), ("flip", 0.6), ("gamma", 1.1), ("lam", 2.0),
        ("lr", math.inf), ("steps", "ten"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        Settings(**{name: value})


@pytest.mark.parametrize("name", sorted(MAY_BE_ZERO))
def test_some_options_may_be_zero(name):
    zero = type(getattr(Settings, name))(0)
    assert getattr(Settings(**{name: zero}), name) == 0


def test_rloo_wants_whole_groups():
    with pytest.raises(
        ValueError, match="batch: want a multiple of group 3, found 128"
    ):
        Settings(method="rloo", group=3)
    Settings(method="ppo", group=3)  # nobody else groups


def test_a_controller_whose_beta_could_become_negative_is_refused_before_the_run():
    with pytest.raises(
        ValueError, match="horizon: want more than a fifth of batch 128"
    ):
        Settings(target_kl=6.0, horizon=25.0)
    Settings(target_kl=6.0, horizon=26.0)
    Settings(horizon=25.0)  # no controller, no horizon


def test_the_ppo_settings_are_those_of_the_run():
    s = Settings(lam=0.5, epochs=7, max_grad_norm=0.3)
    assert s.ppo() == PPOSettings(
        gamma=s.gamma, lam=0.5, clip_eps=s.clip_eps, value_clip=s.value_clip,
        value_weight=s.value_weight, epochs=7, minibatches=s.minibatches,
        max_grad_norm=0.3,
    )  # fmt: skip


def test_data_lie_in_the_out_folder_unless_another_is_named():
    assert str(Settings(out="here").data_folder) == "here"
    assert str(Settings(out="here", data="there").data_folder) == "there"
    assert str(Settings(out="here", data="there").out_folder) == "here"


# --- the command line ---------------------------------------------------------


def test_no_words_give_the_defaults():
    assert parse([]) == Settings()


@pytest.mark.parametrize("name", [f.name for f in fields(Settings)])
def test_every_option_can_be_given(name):
    default = getattr(Settings, name)
    other = {"method": "dpo", "reward": "gold", "device": "cpu"}.get(name)
    if other is None:
        kind = type(default)
        other = {str: "x", int: 4 * (default or 1)}.get(kind)
        other = default / 2 + 0.01 if kind is float else other
        other = not default if kind is bool else other
    flag = name.replace("_", "-")
    words = [f"--{flag}", str(other)]
    if isinstance(other, bool):
        words = [f"--{flag}" if other else f"--no-{flag}"]
    assert parse(words) == replace(Settings(), **{name: other})


def test_help_lists_every_option_with_its_text_and_default(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(["--help"])
    assert exit.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for f in fields(Settings):
        assert "--" + f.name.replace("_", "-") in shown
        # argparse may break a line at a hyphen
        text = f.metadata["help"].replace("-", "").replace(" ", "")
        assert text in shown.replace("-", "").replace(" ", ""), f.name
        if f.default and not isinstance(f.default, str):
            assert f"(default: {f.default})" in shown, f.name


@pytest.mark.parametrize(
    "words, message",
    [
        (["--beta", "0"], "beta: want a number > 0, found 0.0"),
        (["--method", "trpo"], "method: want one of"),
        (["--steps", "ten"], "--steps: invalid int value: 'ten'"),
        (["--betta", "1"], "unrecognized arguments: --betta 1"),
        (["--device", "abacus"], "device: no such device, 'abacus'"),
    ],
)
def test_a_wrong_word_ends_the_command_with_its_message(capsys, words, message):
    with pytest.raises(SystemExit) as exit:
        parse(words)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


# --- profiles -----------------------------------------------------------------


@pytest.mark.parametrize(
    "profile, want", [("fast", FAST), ("full", {}), (None, FAST)], ids=str
)
def test_the_profile_scales_the_run(monkeypatch, profile, want):
    monkeypatch.delenv("RLHF_MINI_PROFILE", raising=False)
    if profile:
        monkeypatch.setenv("RLHF_MINI_PROFILE", profile)
    assert from_environment(seed=3) == Settings(**(want | {"seed": 3}))


def test_what_the_caller_asks_for_goes_before_the_profile(monkeypatch):
    monkeypatch.setenv("RLHF_MINI_PROFILE", "fast")
    assert from_environment(steps=77).steps == 77


def test_another_profile_is_named(monkeypatch):
    monkeypatch.setenv("RLHF_MINI_PROFILE", "slow")
    with pytest.raises(ValueError, match="want fast or full, found 'slow'"):
        from_environment()
