"""Training that resists attacks: objectives for `holdfast.training.fit` whose inner step is an attack.

`pgd_at.py` is adversarial training itself, against which every other method is measured; `at_lr.py` also holds still
the layers that `lsa` finds most vulnerable. `pubdef.py` trains on images attacked on other models, which
`transfer_sets.py` makes; `worst_transfer.py` measures what that is worth. `self_gmad.py` mends models of scores
(quality, age) by the pairs of images on which they contradict their pruned versions.
"""

from holdfast.hardening.at_lr import ATLR
from holdfast.hardening.defensive_distillation import DefensiveDistillation, distil
from holdfast.hardening.pgd_at import PGDAT
from holdfast.hardening.pubdef import PubDef
from holdfast.hardening.random_pairs import RandomPairs
from holdfast.hardening.self_gmad import SelfGMAD
from holdfast.hardening.transfer_sets import TransferSets, transfer_sets
from holdfast.hardening.worst_transfer import WorstTransfer, worst_transfer

__all__ = [
    "ATLR",
    "PGDAT",
    "DefensiveDistillation",
    "PubDef",
    "RandomPairs",
    "SelfGMAD",
    "TransferSets",
    "WorstTransfer",
    "distil",
    "transfer_sets",
    "worst_transfer",
]
