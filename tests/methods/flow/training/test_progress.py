"""The progress of a training without a terminal: a line a minute, with step, rate and time left."""

import logging

import torch

from sanflow.methods.flow.training import progress


def test_a_line_a_minute_where_there_is_no_terminal(caplog, monkeypatch):
    seconds = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds)
    # A loss on the meta device has no value: reading it would fail.
    losses = {"scale0_loss": torch.zeros((), device="meta")}
    with caplog.at_level(logging.INFO), progress.Progress(n_steps=1000, done=100, batch_size=4) as bar:
        for _ in range(130):
            seconds += 1.0
            bar.advance(losses)
    assert caplog.messages == [
        "Step 160 of 1000, 4.0 images/s, 0:14:00 left.",
        "Step 220 of 1000, 4.0 images/s, 0:13:00 left.",
    ]
