"""The page of the training recipe: its fields, read off the model that checks them."""

from __future__ import annotations

from holdfast.training import Recipe

from . import markdown

__all__ = ["page"]

_INTRO = """\
# Training recipe

`holdfast train recipe.yaml` trains a model by a recipe: a training written down in YAML, of which every word is checked
before the first step. Methods are named by [specs](../concepts.md#specs).

```yaml title="recipe.yaml"
model: convnet
data: digits
epochs: 2
optimizer: sgd(lr=0.05)
batch_size: 64
```

```bash
holdfast train recipe.yaml --out runs/digits
```

With the same `--out`, a training that was stopped goes on where it was.

## Fields

"""


def page() -> str:
    """The recipe's page."""
    schema = Recipe.model_json_schema()
    rows = [
        (
            f"`{name}`",
            field["description"],
            "required" if name in schema["required"] else _default(field.get("default")),
        )
        for name, field in schema["properties"].items()
    ]
    return _INTRO + markdown.table(("field", "meaning", "default"), rows)


def _default(value: object) -> str:
    return "none" if value in (None, []) else f"`{markdown.literal(value)}`"
