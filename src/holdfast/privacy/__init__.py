"""What a model gives away about its training data.

Membership inference scores images by how likely they were trained on (`ConfidenceMIA`, `LossMIA`); `leakage` says what
an attacker gains by it.
"""

from holdfast.privacy.confidence_mia import ConfidenceMIA
from holdfast.privacy.evaluation import Leakage, leakage, tpr_at
from holdfast.privacy.loss_mia import LossMIA
from holdfast.privacy.membership import MembershipInference

__all__ = ["ConfidenceMIA", "Leakage", "LossMIA", "MembershipInference", "leakage", "tpr_at"]
