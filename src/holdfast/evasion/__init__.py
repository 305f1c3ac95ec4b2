"""Attacks at test time: inputs changed a little so that a model errs.

A method's file (`pgd.py`, `square.py`, ...) holds the attack; `loop.py` and `pool.py` hold the engine they share, and
`oracle.py` the model as it sees it. `ascend` is the bare inner maximiser for adversarial training; `masking` asks
whether a robustness figure can be trusted.
"""

from holdfast.evasion.ascend import ascend
from holdfast.evasion.attack import BallAttack
from holdfast.evasion.fgsm import FGSM
from holdfast.evasion.outcome import Outcome
from holdfast.evasion.pgd import PGD
from holdfast.evasion.square import Square

__all__ = ["FGSM", "PGD", "BallAttack", "Outcome", "Square", "ascend"]
