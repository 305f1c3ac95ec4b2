r"""Put a trained model into the zoo: round its weights to float16, then measure what is stored.

python recipes/publish.py recipes/digits-convnet.yaml holdfast-out/digits-convnet
python recipes/publish.py recipes/cifar10-resnet20-at.yaml holdfast-out/cifar10-resnet20-at \
    --attack 'pgd(steps=50, restarts=10)'
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from holdfast import Run, catalog
from holdfast.data import load_data
from holdfast.evasion import BallAttack
from holdfast.models import build_model, load_weights, predict, save_weights
from holdfast.models.zoo import Measured, publish
from holdfast.training import Recipe


def main() -> None:
    """Read the arguments, measure, publish."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("trained", type=Path, help="the folder that `holdfast train` filled")
    parser.add_argument("--attack", help="measure robust accuracy under this attack on the whole test set")
    parser.add_argument("--summary", default="")
    arguments = parser.parse_args()
    recipe = Recipe.load(arguments.recipe)
    # Gradients may be rounded; verdicts are float32 all the same, and it takes half the time.
    run = Run(progress=True, precision="auto")
    data = load_data(recipe.data, run=run)
    model = build_model(recipe.model, num_classes=data.num_classes, image_shape=data.shape)
    load_weights(model, arguments.trained / "weights.safetensors")
    with tempfile.TemporaryDirectory() as folder:
        rounded = Path(folder) / "rounded.safetensors"
        save_weights(model, rounded, {}, torch.float16)
        load_weights(model, rounded)
    where = f"{recipe.data} test"
    right = int((predict(model, data.test, run=run).argmax(1) == data.test.y).sum())
    robust = []
    if arguments.attack:
        attack = catalog.build(arguments.attack, kind=BallAttack)
        x, y = next(data.test.batches(len(data.test)))
        outcome = attack.run(model, x, y, run=run)
        stood = int((~outcome.success).sum())
        robust.append(Measured(value=stood / len(y), n=len(y), data=where, attack=str(attack)))
    card = publish(
        model,
        arguments.recipe.stem,
        classes=data.classes,
        data=recipe.data,
        recipe=f"recipes/{arguments.recipe.name}",
        accuracy=Measured(value=right / len(data.test), n=len(data.test), data=where),
        robust_accuracy=robust,
        summary=arguments.summary,
    )
    print(card.model_dump_json(indent=2))


if __name__ == "__main__":
    main()
