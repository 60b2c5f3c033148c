"""Handshake and modern: each side may speak the other's language.

A wrapper stands between a session and its backend where the two are of different eras.
"""

from .launcher import OURSELVES, EraLauncher
from .rounds import Rounds
from .to_modern import ToModern

__all__ = ["OURSELVES", "EraLauncher", "Rounds", "ToModern"]
