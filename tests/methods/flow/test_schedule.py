"""The learning-rate schedule at the points one can compute by hand."""

import pytest

from sanflow.methods.flow.schedule import learning_rate


def rate(epoch: int, batch: int = 0, **changes) -> float:
    settings = {"epochs": 20, "batches_per_epoch": 10, "base_lr": 1.0, "warmup_epochs": 2.0, "final_factor": 0.001}
    return learning_rate(epoch, batch, **(settings | changes))


def test_warm_up_is_linear_from_a_tenth():
    top = 0.001 + 0.999 * (1 + 0.9510565162951535) / 2  # cos(pi 2 / 20)
    assert rate(0, 0) == pytest.approx(0.1)
    assert rate(1, 0) == pytest.approx((0.1 + top) / 2)
    assert rate(1, 9) == pytest.approx(0.1 + (top - 0.1) * 19 / 20)
    assert rate(2, 0) == rate(2, 9) == pytest.approx(top)


def test_cosine_by_epoch():
    assert rate(10, 3) == pytest.approx(0.5005)
    assert rate(0, 5, warmup_epochs=0) == 1.0
    assert rate(19) > rate(20) == pytest.approx(0.001)


def test_fractions_of_an_epoch():
    # Half an epoch is 5 batches, so batch 5 already has the cosine's value of its epoch.
    assert rate(0, 5, warmup_epochs=0.5) == 1.0
    assert rate(0, 4, warmup_epochs=0.5) < 1.0


def test_warm_up_is_monotonous_for_short_trainings():
    rates = [
        learning_rate(epoch, batch, epochs=2, batches_per_epoch=4, base_lr=5e-4, warmup_epochs=0.5)
        for epoch in range(2)
        for batch in range(4)
    ]
    assert rates[0] == pytest.approx(5e-5)
    assert max(rates) == pytest.approx(5e-4)


@pytest.mark.parametrize("warmup", [-1, 10.5, 20])
def test_warm_up_that_eats_the_schedule_is_refused(warmup):
    with pytest.raises(ValueError, match="at most half of the 20 epochs"):
        rate(0, warmup_epochs=warmup)
