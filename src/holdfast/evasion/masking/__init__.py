"""Can a robustness figure be trusted? Signs that an attack failed for reasons other than robustness.

A model can defeat gradient attacks without resisting perturbations: its gradients vanish, are shattered or are random,
or its softmax hides them. Each sign is a number with a limit and the attack to try next; none is a proof, and passing
all of them is none either. `outputs.py` looks at answers, `gradients.py` at gradients, `attacks.py` at attacks against
each other.

Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420; Carlini et al.,
"On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; Pintor et al., "Indicators of Attack Failure", NeurIPS
2022, arXiv:2106.09947; the flags of AutoAttack (Croce & Hein 2020).
"""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast.evasion.masking.attacks import attack_signs
from holdfast.evasion.masking.gradients import gradient_signs
from holdfast.evasion.masking.outputs import output_signs
from holdfast.evasion.masking.path import path_signs
from holdfast.evasion.masking.sign import Sign
from holdfast.evasion.oracle import consult
from holdfast.evasion.outcome import check_inputs
from holdfast.run import Run

__all__ = ["Sign", "masking_signs"]


def masking_signs(
    model: nn.Module,
    x: Float[Tensor, "n c h w"],
    y: Int64[Tensor, " n"],
    *,
    run: Run,
    eps: float = 8 / 255,
    steps: int = 20,
    queries: int = 500,
) -> list[Sign]:
    """Look for signs of masked gradients in a model, at an l_inf radius.

    About 100 images are enough. The cost is that of nine attacks with `steps` steps, one Square, and as many random
    points again on what is left standing. The model is always tried in evaluation mode.

    Args:
        model: in any mode, left as it was.
        x, y: images in [0, 1] and their labels.
        run: device, seed, batch size; everything is computed in float32.
        eps: radius at which robustness was measured.
        steps: of the gradient attacks.
        queries: of Square and of random search.

    Raises:
        UserError: as the attacks do.
    """
    check_inputs("masking", x, y)
    run = run.but(precision="fp32").child("masking")
    with consult(model, x[:8], run) as oracle:
        points, labels = x.float().to(oracle.device), y.to(oracle.device)
        found = [
            *output_signs(oracle, points),
            *gradient_signs(oracle, points, labels, run, eps),
            *path_signs(oracle, points, labels, run, eps, steps),
        ]
    return [*found, *attack_signs(model, x, y, run, eps, steps, queries)]
