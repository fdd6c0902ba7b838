"""What a loss gets besides the state: rows of data, a key, or both, anew at each step."""

from .feed import Feed, describe, draw, epochs, sources_in, traced_sources
from .keys import Keys
from .minibatches import Minibatches
from .source import Source

__all__ = [
    "Feed",
    "Keys",
    "Minibatches",
    "Source",
    "describe",
    "draw",
    "epochs",
    "sources_in",
    "traced_sources",
]
