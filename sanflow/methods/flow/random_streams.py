"""The random numbers of a training: one stream for each purpose, so that none depends on how many another drew."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for."""

    JITTER = 0
    ANOMALIES = 1
    ORDER = 2
    ROTATION = 3
    LOCATIONS = 4


def random_of(seed: int, stream: Stream, step: int) -> np.random.RandomState:
    """Return the random numbers of one step (or pass) of one stream.

    They depend on nothing else, so a resumed training draws what an uninterrupted one does.
    """
    # RandomState, not Generator: only the former's stream is frozen across numpy versions.
    return np.random.RandomState(np.random.SeedSequence([seed, stream, step]).generate_state(8))
