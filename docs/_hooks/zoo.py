"""The page of the bundled models, from their cards."""

from __future__ import annotations

from holdfast.models import Measured, zoo_card, zoo_names

from . import markdown

__all__ = ["page"]

_INTRO = """\
# Bundled models

Small trained models that come with holdfast, to try it on and to compare with. Each was trained by a recipe that stands
in the repository. The figures are measured on the stored weights, on images the model was not trained on.

```bash
holdfast zoo list
holdfast audit --model zoo:digits-convnet --data digits
```

"""


def page() -> str:
    """The page of the zoo."""
    cards = [zoo_card(name) for name in zoo_names()]
    rows = [
        (
            f"`zoo:{card.name}`",
            card.summary,
            f"`{card.architecture}`",
            _figure(card.accuracy),
            "; ".join(f"{_figure(measured)}, `{measured.attack}`" for measured in card.robust_accuracy),
            f"`{card.recipe}`",
        )
        for card in cards
    ]
    columns = ("name", "what it is", "architecture", "accuracy", "accuracy under attack", "recipe")
    return _INTRO + markdown.table(columns, rows)


def _figure(measured: Measured) -> str:
    return f"{measured.value:.2%} of {measured.n} ({measured.data})"
