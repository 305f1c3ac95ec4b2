"""Each method's claim as a runnable experiment, and the ledger of what came out."""

from holdfast.proofs.lab import Lab
from holdfast.proofs.ledger import Entry
from holdfast.proofs.proof import Measured, Proof, proof, proofs, prove

__all__ = ["Entry", "Lab", "Measured", "Proof", "proof", "proofs", "prove"]
