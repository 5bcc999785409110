"""Frozen feature extractors: they turn an image into feature maps at one to four scales.

Only this package imports timm and torchvision's models, and sets the released ResNets' reflection padding. The rest of
sanflow uses an `Encoder`: `channels`, `strides`, `mean`, `std`, `identity`, and a call that takes images_B3HW and
gives a list of features_BChw.
"""

from sanflow.encoders.build import build_encoder
from sanflow.encoders.encoder import Encoder
from sanflow.encoders.names import LISTED_ENCODERS, ListedEncoder
from sanflow.encoders.scales import measure_feature_scales
from sanflow.encoders.weights import read_weights, weights_digest

__all__ = [
    "LISTED_ENCODERS",
    "Encoder",
    "ListedEncoder",
    "build_encoder",
    "measure_feature_scales",
    "read_weights",
    "weights_digest",
]
