"""What a model gives away about its training data.

Membership inference scores images by how likely they were trained on, from one answer (`LossMIA`, `ConfidenceMIA`,
`EntropyMIA`, `ModifiedEntropyMIA`) or by comparison with shadow models (`LiRA`, `RMIA`); `leakage` says what an
attacker gains by it. `audit_with_shadows` goes from a model to leakage, `ULiRA` asks the same of unlearning.
"""

from holdfast.privacy.confidence_mia import ConfidenceMIA
from holdfast.privacy.entropy_mia import EntropyMIA
from holdfast.privacy.evaluation import Leakage, leakage, tpr_at
from holdfast.privacy.fit_recipe import FitRecipe, Trainer
from holdfast.privacy.lira import LiRA
from holdfast.privacy.loss_mia import LossMIA
from holdfast.privacy.membership import MembershipInference, ShadowAttack
from holdfast.privacy.modified_entropy_mia import ModifiedEntropyMIA
from holdfast.privacy.rmia import RMIA
from holdfast.privacy.shadow_audit import MembershipAudit, audit_with_shadows
from holdfast.privacy.shadow_models import balanced_halves, train_shadows
from holdfast.privacy.shadows import Shadows
from holdfast.privacy.ulira import Trace, TraceReport, ULiRA
from holdfast.privacy.views import VIEWS, observe

__all__ = [
    "RMIA",
    "VIEWS",
    "ConfidenceMIA",
    "EntropyMIA",
    "FitRecipe",
    "Leakage",
    "LiRA",
    "LossMIA",
    "MembershipAudit",
    "MembershipInference",
    "ModifiedEntropyMIA",
    "ShadowAttack",
    "Shadows",
    "Trace",
    "TraceReport",
    "Trainer",
    "ULiRA",
    "audit_with_shadows",
    "balanced_halves",
    "leakage",
    "observe",
    "tpr_at",
    "train_shadows",
]
