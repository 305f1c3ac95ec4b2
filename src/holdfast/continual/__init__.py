"""Learning for ever, and forgetting on demand: requests that come one after the other, and a small memory.

`serve_stream` lets a learner serve requests to learn images, to forget images, or both, and records what is known after
each; `Memory` is a reservoir from which what must be forgotten is gone for good.
"""

from holdfast.continual.der_plus_plus import DERPlusPlus
from holdfast.continual.er import ER
from holdfast.continual.learner import ContinualLearner, serve
from holdfast.continual.memory import Memory, identified
from holdfast.continual.record import Record
from holdfast.continual.request import Request, read_requests
from holdfast.continual.stream import Served, serve_stream
from holdfast.continual.ug_clu import UGCLU

__all__ = [
    "ER",
    "UGCLU",
    "ContinualLearner",
    "DERPlusPlus",
    "Memory",
    "Record",
    "Request",
    "Served",
    "identified",
    "read_requests",
    "serve",
    "serve_stream",
]
