"""Victims: models whose making is known, and the examples that attacks on them leave.

What `model-parsing` learns from. `train_victims` makes a small family of convolutional networks that differ in kernel
size and activation; any other models, such as pruned ones or those that are public, are victims as well:

    pruned = GlobalMagnitude(sparsity=0.625)(victim.model, images, run=run)
    Victim(model=pruned, attributes={**victim.attributes, "sparsity": "0.625"})

Yao et al., "Can Adversarial Examples Be Parsed to Reveal Victim Model Information?", arXiv:2303.07474, 2023.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from holdfast import catalog
from holdfast.data.images import Images, to_float
from holdfast.errors import UserError, one_of
from holdfast.evasion.parsing_network import Reads, Rounding, encoded
from holdfast.evasion.transfer import to_bytes
from holdfast.methods import Attack
from holdfast.models import Normalize, predict
from holdfast.models.initialise import he_normal
from holdfast.run import Run
from holdfast.training import SGD, fit
from holdfast.training.train import pixel_statistics

__all__ = ["Examples", "Victim", "VictimNet", "attack_victims", "attributes_of", "train_victims", "weights_from"]

_AT_ONCE = 4096  # examples, for which intermediate values must be held
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "elu": nn.ELU}


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A model with what is known of how it was made.

    Args:
        model: from images in [0, 1] to logits.
        attributes: value by attribute, such as ``{"kernel": "5", "activation": "tanh"}``.
    """

    model: nn.Module
    attributes: Mapping[str, str]

    @property
    def name(self) -> str:
        """The values, joined."""
        return "-".join(self.attributes.values())


class VictimNet(nn.Module):
    """Two blocks of convolution, batch norm, activation and 2x2 max-pooling, then one linear layer.

    Args:
        num_classes, image_shape, normalize: see `holdfast.models.build_model`.
        kernel: side of the convolutions' kernels, odd.
        activation: ``"relu"``, ``"tanh"`` or ``"elu"``.
        width: channels of the first block; the second has twice as many.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
        normalize: nn.Module,
        kernel: int,
        activation: str,
        width: int = 16,
    ):
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise UserError(f"victims: a kernel must be an odd whole number, got {kernel!r}.")
        if activation not in _ACTIVATIONS:
            raise one_of("activation", activation, _ACTIVATIONS)
        self.normalize = normalize
        blocks: list[nn.Module] = []
        channels, height, side = image_shape
        for outputs in (width, 2 * width):
            blocks += [
                nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm2d(outputs),
                _ACTIVATIONS[activation](),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
            channels, height, side = outputs, (height + 1) // 2, (side + 1) // 2
        self.features = nn.Sequential(*blocks)
        self.fc = nn.Linear(channels * height * side, num_classes)
        he_normal(self)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits of images in [0, 1]."""
        return self.fc(self.features(self.normalize(x)).flatten(1))


@contextlib.contextmanager
def weights_from(rng: torch.Generator) -> Iterator[None]:
    """While the block runs, layers that are made draw their first weights from `rng`, not the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng.get_state())
        yield


def train_victims(
    images: Images,
    *,
    kernels: Sequence[int] = (3, 5, 7),
    activations: Sequence[str] = ("relu", "tanh", "elu"),
    width: int = 16,
    epochs: int = 10,
    batch_size: int = 128,
    lr: float = 0.05,
    run: Run,
) -> tuple[Victim, ...]:
    """Train a `VictimNet` for every kernel with every activation.

    The paper's further axes, five architectures and three sparsities, are left to the caller; see above for the latter.

    Args:
        images: the training set.
        kernels, activations, width: of the networks.
        epochs, batch_size, lr: of SGD with a one-cycle schedule. Our own choices: small networks need few epochs.
        run: seed and device. With ``run.out``, a training that was stopped goes on.

    Raises:
        UserError: a kernel or an activation is not one of those there are, or there are no images.
    """
    mean, std = pixel_statistics(images)
    victims = []
    for kernel, activation in itertools.product(kernels, activations):
        here = run.child(f"{kernel}-{activation}")
        with weights_from(here.rng("init")):
            net = VictimNet(
                num_classes=images.num_classes,
                image_shape=images.shape,
                normalize=Normalize(images.shape[0], mean, std),
                kernel=kernel,
                activation=activation,
                width=width,
            )
        model = fit(net, images, epochs=epochs, batch_size=batch_size, optimizer=SGD(lr=lr), run=here).model
        victims.append(Victim(model=model, attributes={"kernel": str(kernel), "activation": activation}))
    return tuple(victims)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Adversarial images that fool the victim they were made on, which has the clean image right.

    Args:
        x: of M examples, uint8, or float32 in [0, 1] where they were not rounded.
        clean: the N clean images, of the same type.
        image: int64 (M,), whose image each is: a position in `clean`.
        victim, attack: int64 (M,), positions in `victims` and `attacks`.
        victims: the attributes of each.
        attacks: their specs.
    """

    x: Tensor
    clean: Tensor
    image: Int64[Tensor, " m"]
    victim: Int64[Tensor, " m"]
    attack: Int64[Tensor, " m"]
    victims: tuple[Mapping[str, str], ...]
    attacks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.x)

    def select(self, which: Tensor) -> Examples:
        """The examples where a mask is true; images, victims and attacks keep their places."""
        rows = {name: getattr(self, name)[which] for name in ("x", "image", "victim", "attack")}
        return dataclasses.replace(self, **rows)

    def of(self, attack: str) -> Examples:
        """The examples of one attack."""
        return self.select(self.attack == self.attacks.index(attack))

    def halves(self, share: float) -> tuple[Examples, Examples]:
        """Those of the first `share` of the images, and those of the other images."""
        early = self.image < round(share * len(self.clean))
        return self.select(early), self.select(~early)

    def inputs(self, reads: Reads, rounding: Rounding) -> Tensor:
        """What a parser reads of them; see `encoded`."""
        places = torch.arange(len(self)).split(_AT_ONCE)
        return torch.cat([encoded(self.x[at], self.clean[self.image[at]], reads, rounding) for at in places])

    def labels(self, attributes: Mapping[str, Sequence[str]]) -> Int64[Tensor, "m a"]:
        """For each example and attribute, which of its values the victim has.

        Raises:
            UserError: a victim lacks an attribute, or has a value that is not among those given.
        """
        table = []
        for victim in self.victims:
            for name, values in attributes.items():
                if victim.get(name) not in values:
                    raise UserError(f"a victim's {name} must be one of {', '.join(values)}, got {victim.get(name)}.")
            table.append([list(values).index(victim[name]) for name, values in attributes.items()])
        return torch.tensor(table)[self.victim]


def attributes_of(victims: Sequence[Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
    """The attributes that victims differ in, and the values of each, in order of appearance.

    Raises:
        UserError: victims have different attributes, or do not differ in any.
    """
    names = list(victims[0]) if victims else []
    for victim in victims:
        if set(victim) != set(names):
            raise UserError(
                f"all victims must have the same attributes, got {', '.join(names) or 'none'} and "
                f"{', '.join(victim) or 'none'}."
            )
    found = {name: tuple(dict.fromkeys(str(victim[name]) for victim in victims)) for name in names}
    found = {name: values for name, values in found.items() if len(values) > 1}
    if not found:
        raise UserError(f"there must be victims that differ in an attribute, got {len(victims)} that do not.")
    return found


def attack_victims(
    victims: Sequence[Victim],
    attacks: Sequence[str],
    images: Images,
    *,
    rounding: Rounding = "8-bit",
    run: Run,
) -> Examples:
    """Attack every victim with every attack on the same images, and keep what fools it.

    Args:
        victims: at least one; left as they were.
        attacks: specs.
        images: with their true labels, at least one.
        rounding: ``"8-bit"`` rounds clean and attacked images alike, before it is asked whether they fool.
        run: device and seed; each victim has random numbers of its own.

    Raises:
        UserError: as the attacks do, or there are no images.
    """
    if not len(images):
        raise UserError(f"{images.name}: there are no images to attack.")
    form = to_bytes if rounding == "8-bit" else to_float
    images = images.but(x=form(images.x))
    parts: dict[str, list[Tensor]] = {"x": [], "image": [], "victim": [], "attack": []}
    with run.track(len(victims) * len(attacks), "attacks on victims") as ticker:
        for v, victim in enumerate(victims):
            here = run.child(f"victim-{v}").but(progress=False, out=None)
            right = predict(victim.model, images, run=here).argmax(1) == images.y
            rows = images.select(right)
            for a, spec in enumerate(attacks if len(rows) else ()):
                method = catalog.build(spec, kind=Attack)
                x = form(method(victim.model, to_float(rows.x), rows.y, run=here).detach().cpu())
                fooled = predict(victim.model, rows.but(x=x), run=here).argmax(1) != rows.y
                parts["x"].append(x[fooled].contiguous())
                parts["image"].append(right.nonzero().flatten()[fooled])
                parts["victim"].append(torch.full((int(fooled.sum()),), v))
                parts["attack"].append(torch.full((int(fooled.sum()),), a))
                ticker.advance(1, victim.name)
    if not parts["x"]:
        raise UserError(f"no victim classifies an image of {images.name} rightly, so that there is nothing to attack.")
    return Examples(
        **{name: torch.cat(values) for name, values in parts.items()},
        clean=images.x,
        victims=tuple(victim.attributes for victim in victims),
        attacks=tuple(attacks),
    )
