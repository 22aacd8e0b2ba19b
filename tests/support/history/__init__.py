"""Histories of concurrent operations, and checkers that say what no correct database could have answered.

In the spirit of Elle (Kingsbury and Alvaro, VLDB 2020): lists that are only appended to, whose every value is unique,
show in what order the transactions took effect; see :mod:`.lists`. :mod:`.bank` is the workload whose total is
constant.
"""

from __future__ import annotations

from .bank import check_bank
from .lists import EDGE_KINDS, check_lists
from .record import Anomaly, Append, Audit, Operation, Outcome, Read, Recorder, Step, Transfer, load, report

__all__ = [
    "EDGE_KINDS",
    "Anomaly",
    "Append",
    "Audit",
    "Operation",
    "Outcome",
    "Read",
    "Recorder",
    "Step",
    "Transfer",
    "check_bank",
    "check_lists",
    "load",
    "report",
]
