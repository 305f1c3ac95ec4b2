"""Attacks at test time: inputs changed a little so that a model errs.

A method's file (`pgd.py`, `square.py`, ...) holds the attack; `loop.py` and `pool.py` hold the engine of those within
a ball, `minimal.py` what those have in common that seek the smallest perturbation, `universal.py` those that find one
pattern for all images, and `oracle.py` the model as all of them see it. `ascend` is the bare inner maximiser for
adversarial training; `masking` asks whether a robustness figure can be trusted.
"""

from holdfast.evasion.aaa import AAA
from holdfast.evasion.admix import Admix
from holdfast.evasion.apgd import APGD
from holdfast.evasion.ascend import ascend
from holdfast.evasion.attack import BallAttack, Evasion
from holdfast.evasion.attacked_pairs import Recovery, attacked_pairs, recovery
from holdfast.evasion.autoattack import AutoAttack
from holdfast.evasion.bandits import Bandits
from holdfast.evasion.bidirectional_square import BidirectionalSquare
from holdfast.evasion.boundary import Boundary
from holdfast.evasion.c_avp import CAVP
from holdfast.evasion.cdd_red import CDDRED, train_denoiser
from holdfast.evasion.cw import CW
from holdfast.evasion.deepfool import DeepFool
from holdfast.evasion.di_fgsm import DIFGSM
from holdfast.evasion.dominant_patterns import DominantPatterns
from holdfast.evasion.ensemble import Ensemble
from holdfast.evasion.fab import FAB
from holdfast.evasion.fg_uap import FGUAP
from holdfast.evasion.fgsm import FGSM
from holdfast.evasion.guard import Guarded, TrainedGuard, learned, save_guard
from holdfast.evasion.hopskipjump import HopSkipJump
from holdfast.evasion.i_fgsm import IFGSM
from holdfast.evasion.l2_transferability import L2Transferability
from holdfast.evasion.lsa import LSA
from holdfast.evasion.mad_competition import MADCompetition
from holdfast.evasion.mi_di_ti import MIDITI
from holdfast.evasion.mi_fgsm import MIFGSM
from holdfast.evasion.minimal import MinimalAttack, Task
from holdfast.evasion.model_parsing import ModelParsing
from holdfast.evasion.momentum import MomentumAttack
from holdfast.evasion.nes import NES
from holdfast.evasion.ni_fgsm import NIFGSM
from holdfast.evasion.ni_si_ti_di import NISITIDI
from holdfast.evasion.out_noise import OutNoise
from holdfast.evasion.outcome import Outcome, Stage, StagedOutcome
from holdfast.evasion.parsing_network import Parser, load_parser
from holdfast.evasion.pattern import Pattern
from holdfast.evasion.pgd import PGD
from holdfast.evasion.querynet import QueryNet
from holdfast.evasion.random_noise import RandomNoise
from holdfast.evasion.random_sign import RandomSign
from holdfast.evasion.rnd import RND
from holdfast.evasion.sgd_uap import SGDUAP
from holdfast.evasion.si_fgsm import SIFGSM
from holdfast.evasion.signhunter import SignHunter
from holdfast.evasion.simba import SimBA
from holdfast.evasion.square import Square
from holdfast.evasion.svre import SVRE
from holdfast.evasion.ti_fgsm import TIFGSM
from holdfast.evasion.transfer import Transfer, transfer
from holdfast.evasion.u_avp import UAVP
from holdfast.evasion.uap import UAP
from holdfast.evasion.unig import UniG
from holdfast.evasion.universal import UniversalAttack
from holdfast.evasion.victims import Victim, train_victims
from holdfast.evasion.vmi_fgsm import VMIFGSM
from holdfast.evasion.zoo import ZOO

__all__ = [
    "AAA",
    "APGD",
    "CAVP",
    "CDDRED",
    "CW",
    "DIFGSM",
    "FAB",
    "FGSM",
    "FGUAP",
    "IFGSM",
    "LSA",
    "MIDITI",
    "MIFGSM",
    "NES",
    "NIFGSM",
    "NISITIDI",
    "PGD",
    "RND",
    "SGDUAP",
    "SIFGSM",
    "SVRE",
    "TIFGSM",
    "UAP",
    "UAVP",
    "VMIFGSM",
    "ZOO",
    "Admix",
    "AutoAttack",
    "BallAttack",
    "Bandits",
    "BidirectionalSquare",
    "Boundary",
    "DeepFool",
    "DominantPatterns",
    "Ensemble",
    "Evasion",
    "Guarded",
    "HopSkipJump",
    "L2Transferability",
    "MADCompetition",
    "MinimalAttack",
    "ModelParsing",
    "MomentumAttack",
    "OutNoise",
    "Outcome",
    "Parser",
    "Pattern",
    "QueryNet",
    "RandomNoise",
    "RandomSign",
    "Recovery",
    "SignHunter",
    "SimBA",
    "Square",
    "Stage",
    "StagedOutcome",
    "Task",
    "TrainedGuard",
    "Transfer",
    "UniG",
    "UniversalAttack",
    "Victim",
    "ascend",
    "attacked_pairs",
    "learned",
    "load_parser",
    "recovery",
    "save_guard",
    "train_denoiser",
    "train_victims",
    "transfer",
]
