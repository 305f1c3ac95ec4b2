"""Attacks at test time: inputs changed a little so that a model errs.

A method's file (`pgd.py`, `square.py`, ...) holds the attack; `loop.py` and `pool.py` hold the engine of those within
a ball, `minimal.py` what those have in common that seek the smallest perturbation, and `oracle.py` the model as both
see it. `ascend` is the bare inner maximiser for adversarial training; `masking` asks
whether a robustness figure can be trusted.
"""

from holdfast.evasion.ascend import ascend
from holdfast.evasion.attack import BallAttack, Evasion
from holdfast.evasion.fgsm import FGSM
from holdfast.evasion.minimal import MinimalAttack, Task
from holdfast.evasion.outcome import Outcome
from holdfast.evasion.pgd import PGD
from holdfast.evasion.square import Square

__all__ = ["FGSM", "PGD", "BallAttack", "Evasion", "MinimalAttack", "Outcome", "Square", "Task", "ascend"]
