"""The conformance run on a few families, and the oracle on specs that are wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnattr.arch.spec import Place
from tests.conformance.conformance import Outcome, judge_apart, main, table
from tests.conformance.oracle import disagreement
from tests.tiny import tiny_model


@pytest.mark.parametrize(
    ("model_type", "verdict", "route"),
    [
        ("llama", "proven", "table"),
        ("glm4", "proven", "discovered"),
        ("mamba", "refused", "discovered"),
    ],
)
def test_verdict(model_type: str, verdict: str, route: str) -> None:
    outcome = judge_apart(model_type)
    assert (outcome.verdict, outcome.route) == (verdict, route), outcome
    assert bool(outcome.reason) == (verdict == "refused")


def test_a_class_that_takes_too_long_does_not_stop_the_run() -> None:
    outcome = judge_apart("gpt2", seconds=0.001)
    assert outcome.verdict == "not tried"
    assert "longer" in outcome.reason


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon", "bloom", "qwen3", "opt"])
def test_oracle_agrees_with_the_table(family: str) -> None:
    with torch.no_grad():
        assert disagreement(tiny_model(family)) is None


@pytest.mark.parametrize("path", ["mlp.down_proj", "self_attn.v_proj"])
def test_oracle_contradicts_a_wrong_projection(path: str) -> None:
    model = tiny_model("olmo", num_key_value_heads=4)
    wrong = replace(model.spec, attn_proj=path, attn_out=Place(path, "output"))
    with torch.no_grad():
        found = disagreement(replace(model, spec=wrong))
    assert found is not None
    assert found.startswith("silencing")


def test_table_is_written(tmp_path: Path) -> None:
    file = tmp_path / "architectures.md"
    assert main(["--only", "mamba", "--write", str(file)]) == 0
    assert "| mamba | MambaForCausalLM |" in file.read_text(encoding="utf-8")


def test_wrong_is_listed_first_of_all_counts() -> None:
    text = table([Outcome("x", "X", "wrong", "table", "a | b")])
    assert "**1 wrong**" in text
    assert "a \\| b" in text
