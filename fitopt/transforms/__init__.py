"""Bijections between a Parameter's value and the unconstrained value that an optimizer moves."""

from .bounds import Bounded, Interval
from .elementwise import Affine, Chain, Exp, Identity
from .joint import Ordered, PositiveDefinite, Simplex
from .transform import Transform

__all__ = [
    "Affine",
    "Bounded",
    "Chain",
    "Exp",
    "Identity",
    "Interval",
    "Ordered",
    "PositiveDefinite",
    "Simplex",
    "Transform",
]
