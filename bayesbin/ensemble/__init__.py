"""Ensembles: drawn networks with all that belongs to them, the one object that predicts."""

from bayesbin.ensemble.ensemble import Ensemble
from bayesbin.ensemble.members import Statistics
from bayesbin.ensemble.programs import Compiled
from bayesbin.ensemble.selection import Selection, select_network

__all__ = ["Compiled", "Ensemble", "Selection", "Statistics", "select_network"]
