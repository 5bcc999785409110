"""`sanflow/compact` as a network like the libraries': the small encoder whose weights come with sanflow."""

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path

from sanflow.encoders.compact import MEAN, STD, CompactEncoder, load_compact, shipped_weights
from sanflow.encoders.networks import Network, last_taps, seeded_weights
from sanflow.encoders.taps import tap_modules

TAPS = ("heads.0", "heads.1", "heads.2")


def create_compact(weights: str | os.PathLike[str], seed: int) -> Network:
    """The compact encoder; its width is that of the weights.

    Arguments:
        weights: `pretrained` for the weights that come with sanflow, `random`, or a file of `sanflow distill`.
        seed: Of random weights.

    Raises:
        WeightsError: If the file is missing, damaged or holds another network.
    """
    path = shipped_weights() if weights == "pretrained" else Path(weights)
    with seeded_weights(seed):
        module = CompactEncoder().eval() if weights == "random" else load_compact(path)
    name = "sanflow/compact"
    return Network(
        module=module,
        name=name,
        architecture="compact",
        tag=None,
        version=f"sanflow {version('sanflow')}",
        mean=MEAN,
        std=STD,
        heads=(),
        default_taps=partial(last_taps, TAPS, name),
        tap=partial(tap_modules, name=name),
        fetch=shipped_weights,
    )
