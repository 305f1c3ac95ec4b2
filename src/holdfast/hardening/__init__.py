"""Training that resists attacks: objectives for `holdfast.training.fit` whose inner step is an attack.

`pgd_at.py` is adversarial training itself, against which every other method is measured.
"""

from holdfast.hardening.pgd_at import PGDAT

__all__ = ["PGDAT"]
