"""Evaluation: what follows from its losses."""

import dataclasses
import math

import pytest
from helpers.progress import make_evaluation


def test_perplexity_and_bits_follow_from_the_validation_loss():
    evaluation = make_evaluation()
    assert evaluation.perplexity == pytest.approx(4)
    assert evaluation.bits_per_char == pytest.approx(2)


@pytest.mark.parametrize(("val_loss", "expected"), [(math.inf, math.inf), (1e4, math.inf)])
def test_perplexity_of_a_hopeless_model_is_infinite(val_loss, expected):
    assert make_evaluation(val_loss=val_loss).perplexity == expected
    assert math.isnan(make_evaluation(val_loss=math.nan).perplexity)


def test_an_evaluation_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_evaluation().step = 3
