"""Removing the influence of part of the training data from a model, and telling whether that worked.

Unlearners take a model, the images to forget and those to retain, and return a new model; `forgetting`, `average_gap`
and `divergences` compare it with one that was retrained. Concept unlearners make a model that draws forget a
`Concept`, and prompt attacks tell whether it has.
"""

from holdfast.models import reinitialised
from holdfast.unlearning.bad_teacher import BadTeacher
from holdfast.unlearning.boundary_expanding import BoundaryExpanding
from holdfast.unlearning.boundary_shrink import BoundaryShrink
from holdfast.unlearning.certificate import Certificate, certify_unlearning
from holdfast.unlearning.concepts import Concept, ConceptUnlearner
from holdfast.unlearning.esd import ESD
from holdfast.unlearning.evidence import Forgetting, average_gap, divergences, forgetting, mia_nonmember_rate
from holdfast.unlearning.fmn import ForgetMeNot
from holdfast.unlearning.ft import FT
from holdfast.unlearning.gradient_ascent import GradientAscent
from holdfast.unlearning.influence_unlearning import InfluenceUnlearning
from holdfast.unlearning.l1_sparse import L1Sparse
from holdfast.unlearning.mim_mu import MiMMU
from holdfast.unlearning.natural_mu import NaturalMU
from holdfast.unlearning.neggrad_plus import NegGradPlus
from holdfast.unlearning.p4d import P4D
from holdfast.unlearning.prompt_attacks import PromptAttack, Recovered
from holdfast.unlearning.random_label import RandomLabel
from holdfast.unlearning.request import forget_mask
from holdfast.unlearning.retrain import Retrain
from holdfast.unlearning.salun import SalUn
from holdfast.unlearning.salun_diffusion import SalUnDiffusion
from holdfast.unlearning.scrub import SCRUB
from holdfast.unlearning.selective_amnesia import SelectiveAmnesia
from holdfast.unlearning.sfron import SFRon
from holdfast.unlearning.sfron_diffusion import SFRonDiffusion
from holdfast.unlearning.ssd import SSD
from holdfast.unlearning.unlearn_sparse import UnlearnSparse
from holdfast.unlearning.unlearndiffatk import UnlearnDiffAtk
from holdfast.unlearning.worst_case_forget import WorstCase, WorstCaseForget

__all__ = [
    "ESD",
    "FT",
    "P4D",
    "SCRUB",
    "SSD",
    "BadTeacher",
    "BoundaryExpanding",
    "BoundaryShrink",
    "Certificate",
    "Concept",
    "ConceptUnlearner",
    "ForgetMeNot",
    "Forgetting",
    "GradientAscent",
    "InfluenceUnlearning",
    "L1Sparse",
    "MiMMU",
    "NaturalMU",
    "NegGradPlus",
    "PromptAttack",
    "RandomLabel",
    "Recovered",
    "Retrain",
    "SFRon",
    "SFRonDiffusion",
    "SalUn",
    "SalUnDiffusion",
    "SelectiveAmnesia",
    "UnlearnDiffAtk",
    "UnlearnSparse",
    "WorstCase",
    "WorstCaseForget",
    "average_gap",
    "certify_unlearning",
    "divergences",
    "forget_mask",
    "forgetting",
    "mia_nonmember_rate",
    "reinitialised",
]
