"""How to call a method, by its kind: in Python and, where there is a command, on the command line or in a recipe.

The tests run the Python of every method.
"""

from __future__ import annotations

import textwrap

from holdfast import catalog
from holdfast.evasion import TrainedGuard
from holdfast.methods import Card, Method, Objective

from . import markdown

__all__ = ["examples", "python"]

# What an example spells out: fields that cannot be guessed, and budgets that keep the example short.
_GIVEN = {
    **{id: f"{id}(queries=200)" for id in ("square", "bandits", "nes", "signhunter", "simba", "zoo")},
    **{id: f"{id}(queries=200)" for id in ("bidirectional-square", "boundary", "hopskipjump")},
    "querynet": "querynet(queries=40)",
    "cw": "cw(binary_steps=3, steps=100)",
    "low-dim-grad": "low-dim-grad(samples=200, probe_samples=400)",
    "autoattack": "autoattack(steps=20, queries=200)",
    "pgd-at": "pgd-at(steps=3)",
    "at-lr": "at-lr(steps=3)",
    "ft": "ft(epochs=1, crop=none, flip=none)",
    "retrain": "retrain(epochs=5, crop=none, flip=none)",
    "relabel": "relabel(drop=['0', '1'])",
    "subset": "subset(fraction=0.5)",
    "transfer-sets": "transfer-sets(sources=['zoo:digits-convnet'], copies=1)",
    "l2-transferability": "l2-transferability(attacks=['i-fgsm', 'mi-fgsm'], points=2)",
    "pubdef": "pubdef(transforms=[])",
    "c-avp": "c-avp(epochs=1)",
    "u-avp": "u-avp(epochs=1)",
    "ddpm-ddim-cfg": "ddpm-ddim-cfg(updates=20, width=8, steps=50)",
    "ddim": "ddim(steps=20)",
    "ulira": "ulira(models=6)",
    "er": "er(epochs=2, crop=none, flip=none)",
    "der-plus-plus": "der-plus-plus(epochs=2, crop=none, flip=none)",
    "ug-clu": "ug-clu(epochs=2, crop=none, flip=none)",
    "worst-case-forget": "worst-case-forget(rounds=2, epochs=1)",
    "modes": "modes(weights=['other.safetensors'])",
    "cdd-red": "cdd-red(epochs=1, depth=3, width=8, attacks=['pgd(steps=2)'])",
}

# By kind, or by id where a method is called in a way of its own.
_PYTHON = {
    "attack": """
        from holdfast import Run
        from holdfast.data import load_data, to_float
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")
        x, y = to_float(data.test.x[:32]), data.test.y[:32]

        x_adv = {made}(model, x, y, run=Run())
        """,
    "detector": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import load_model
        from holdfast.ood import fit_detectors, score_detectors
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        detectors = fit_detectors([{made}], model, data.train, run=run)
        [scores] = score_detectors(detectors, model, data.test, run=run).values()  # higher is more anomalous
        """,
    "calibrator": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import extract, load_model
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        held_out = extract(model, data.val, run=run)
        calibrate = {made}.fit(held_out.logits, held_out.y)
        probabilities = calibrate(extract(model, data.test, run=run).logits).softmax(1)
        """,
    "membership": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import extract, load_model
        from holdfast.privacy import leakage
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        attack = {made}
        seen = attack.score(extract(model, data.train, run=run))  # higher: more likely trained on
        unseen = attack.score(extract(model, data.test, run=run))
        print(leakage(seen, unseen, rng=run.numpy_rng("leakage")).auc)
        """,
    "shadow-membership": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import load_model
        from holdfast.privacy import FitRecipe, audit_with_shadows
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        recipe = FitRecipe(epochs=2)  # as the model was trained
        found = audit_with_shadows(model, data.train, data.test, recipe, attacks=[{made}], shadows=4, run=run)
        [leak] = found.leakage.values()
        print(leak.auc)
        """,
    "ulira": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import build_model
        from holdfast.privacy import FitRecipe
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = build_model("mlp", num_classes=data.num_classes, image_shape=data.shape, run=run)
        images, retain = data.train.select(slice(0, 100)), data.train.select(slice(100, 300))

        unlearners = ["ft(epochs=2, crop=none, flip=none)"]
        report = {made}(model, images, retain, FitRecipe(epochs=5), unlearners, run=run)
        print(report.sentence)
        """,
    "unlearner": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")
        forget, retain = data.train.select(slice(0, 50)), data.train.select(slice(50, None))

        forgotten = {made}(model, forget, retain, run=Run())
        """,
    "continual-learner": """
        from holdfast import Run
        from holdfast.continual import Memory, Request, identified, serve_stream
        from holdfast.data import load_data
        from holdfast.models import build_model
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        train = identified(data.train)
        model = build_model("convnet(width=8)", num_classes=10, image_shape=data.shape, run=run)

        requests = [
            Request(learn=train.select(train.y < 2)),
            Request(learn=train.select(train.y == 2)),
            Request(forget=train.select(train.y == 0)),
        ]
        learner = {made}
        served = serve_stream(learner, model, requests, Memory.empty(50, train), test=data.test, run=run)
        print(served.records[-1].remaining, served.records[-1].unlearned)
        """,
    "worst-case-forget": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        found = {made}(model, data.train, run=Run())
        print(found.sentence)
        forget = data.train.select(found.indices)
        """,
    "compressor": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        smaller = {made}(model, data, run=Run())
        """,
    **{
        kind: f"""
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import build_model
        from holdfast.training import fit
        from {{module}} import {{name}}

        run = Run()
        data = load_data("digits")
        model = build_model("convnet", num_classes=data.num_classes, image_shape=data.shape, run=run)

        trained = fit(model, data.train, epochs=1, {given}, run=run).model
        """
        for kind, given in {
            "objective": "objective={made}",
            "optimizer": "optimizer={made}",
            "schedule": "schedule={made}",
            "optimizer-wrapper": "wrapper={made}",
            "batch-transform": "transforms=[{made}]",
            "callback": "callbacks=[{made}]",
        }.items()
    },
    **dict.fromkeys(
        ("outlier-exposure", "energy-bounded", "pascl"),
        """
        from holdfast import Run
        from holdfast.data import SyntheticOutliers, load_data
        from holdfast.models import build_model
        from holdfast.training import fit
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = build_model("convnet", num_classes=data.num_classes, image_shape=data.shape, run=run)

        outliers = SyntheticOutliers()(data.train, run=run)
        trained = fit(model, data.train, epochs=1, objective={made}, companions={{"outliers": outliers}}, run=run).model
        """,
    ),
    "pubdef": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.hardening import transfer_sets
        from holdfast.models import build_model, load_model
        from holdfast.training import fit
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = build_model("convnet", num_classes=data.num_classes, image_shape=data.shape, run=run)

        train = transfer_sets(data.train, [load_model("zoo:digits-convnet")], copies=1, run=run)
        trained = fit(model, train, epochs=1, objective={made}, run=run).model
        """,
    "l2-transferability": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.models import build_model, load_model
        from holdfast.training import fit
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        surrogate = load_model("zoo:digits-convnet")
        victim = build_model("mlp", num_classes=data.num_classes, image_shape=data.shape, run=run)
        victim = fit(victim, data.train, epochs=1, run=run).model

        report = {made}({{"convnet": surrogate}}, {{"mlp": victim}}, data.test.select(slice(0, 64)), run=run)
        print(report.sentence)
        """,
    "generator": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.generative import sample, save_diffusion
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = {made}(data.train, run=run)

        images = sample(model, of=["7", "7", "3"], sampler="ddim(steps=20)", guidance=2.0, run=run)
        save_diffusion(model, "digits-diffusion")
        """,
    "sampler": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.generative import DDPMDDIMCFG, sample
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = DDPMDDIMCFG(updates=20, width=8, steps=50)(data.train, run=run)

        images = sample(model, 16, sampler={made}, run=run)
        """,
    "noise-prediction": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.generative import Blueprint, build_diffusion, contexts
        from holdfast.training import fit
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = build_diffusion(Blueprint(image_shape=data.shape, classes=data.train.classes, width=8), run=run)

        train = data.train.with_column("context", contexts(model, data.train))
        trained = fit(model, train, epochs=1, objective={made}, optimizer="adam", run=run).model
        """,
    "vae": """
        from holdfast import Run
        from holdfast.data import load_data
        from holdfast.generative import VAE
        from holdfast.training import fit
        from {module} import {name}

        run = Run()
        data = load_data("digits")
        model = VAE(channels=1, factor=2, width=8)

        trained = fit(model, data.train, epochs=1, objective={made}, optimizer="adam", run=run).model
        """,
    "modes": """
        from holdfast import Run
        from holdfast.data import load_data, to_float
        from holdfast.models import build_model, load_model, save_weights
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")
        other = build_model("convnet", num_classes=data.num_classes, image_shape=data.shape, run=Run(seed=1))
        save_weights(other, "other.safetensors")  # of a training from another seed

        together = {made}(model)
        logits = together(to_float(data.test.x[:32]))
        """,
    "surgery": """
        from holdfast.data import load_data, to_float
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        changed = {made}(model)
        logits = changed(to_float(data.test.x[:32]))
        """,
    "trained-guard": """
        from holdfast import Run
        from holdfast.data import load_data, to_float
        from holdfast.evasion import save_guard
        from holdfast.models import load_model
        from {module} import {name}

        data = load_data("digits")
        model = load_model("zoo:digits-convnet")

        guarded = {made}.train(model, data.train.select(slice(0, 64)), run=Run())
        logits = guarded(to_float(data.test.x[:32]))
        save_guard(guarded, "guard.safetensors")  # read again by {name}(weights="guard.safetensors")
        """,
    "transform": """
        from holdfast import Run
        from holdfast.data import load_data
        from {module} import {name}

        data = load_data("digits")
        changed = {made}(data.train, run=Run())
        """,
}

_BY_NAME = "from holdfast import catalog\n\nmethod = catalog.build({spec!r})"

# Language of the fence, then the text; `{spec}` is the method as one writes it in a recipe or on the command line.
_ELSEWHERE = {
    "modes": (
        "On the command line",
        "bash",
        "holdfast ood fit --model resnet20 --weights first.safetensors --guard {quoted} --data cifar10",
    ),
    "continual-learner": (
        "On the command line",
        "bash",
        "holdfast learn --learner {quoted} --model convnet --data digits --requests stream.yaml --buffer 50",
    ),
    "unlearner": (
        "On the command line",
        "bash",
        "holdfast unlearn --method {quoted} --model zoo:digits-convnet --data digits --forget class=3",
    ),
    "generator": (
        "On the command line",
        "bash",
        "holdfast generate train --data digits --method {quoted} --out runs/digits-diffusion",
    ),
    "sampler": (
        "On the command line",
        "bash",
        "holdfast generate sample runs/digits-diffusion --sampler {quoted} -n 16 --out digits.png",
    ),
    "attack": (
        "On the command line",
        "bash",
        "holdfast attack {quoted} --model zoo:digits-convnet --data digits -n 32",
    ),
    "surgery": (
        "On the command line",
        "bash",
        "holdfast attack 'square(queries=200)' --guard {quoted} --model zoo:digits-convnet --data digits -n 32",
    ),
    "trained-guard": (
        "On the command line",
        "bash",
        "holdfast harden {quoted} --model zoo:digits-convnet --data digits",
    ),
    "analysis": (
        "On the command line",
        "bash",
        "holdfast analyse {quoted} -m zoo:cifar10-resnet20 -m zoo:cifar10-resnet20-at -d cifar10 -n 256",
    ),
    "membership": (
        "On the command line",
        "bash",
        "holdfast membership --attack {quoted} --model zoo:digits-convnet --data digits",
    ),
    "shadow-membership": (
        "On the command line",
        "bash",
        "holdfast membership --attack {quoted} --shadows 16 --model zoo:digits-convnet --data digits --epochs 12",
    ),
    "objective": ("In a recipe", "yaml", "objective: {spec}"),
    "optimizer": ("In a recipe", "yaml", "optimizer: {spec}"),
    "schedule": ("In a recipe", "yaml", "schedule: {spec}"),
    "optimizer-wrapper": ("In a recipe", "yaml", "wrapper: {spec}"),
    "batch-transform": ("In a recipe", "yaml", 'transforms: ["{spec}"]'),
    "transform": ("In a recipe", "yaml", 'transforms: ["{spec}"]'),
    "callback": ("In a recipe", "yaml", 'callbacks: ["{spec}"]'),
}


def python(card: Card, method: type[Method]) -> str:
    """A complete example in Python; for a kind without a place of its own, how to build the method by its name."""
    template = _PYTHON.get(card.id) or _PYTHON.get(_kind(card, method), _BY_NAME)
    imports, _, rest = textwrap.dedent(template).strip().format(**_names(card, method)).partition("\n\n")
    return "\n".join([*sorted(imports.splitlines()), "", rest, ""])


def examples(card: Card, method: type[Method]) -> str:
    """All examples of a method, as tabs."""
    tabs = [("In Python", "python", python(card, method))]
    kind = card.id if card.id in _ELSEWHERE else _kind(card, method)
    if kind in _ELSEWHERE and not getattr(method, "needs", ""):  # an analysis that needs more has no command
        title, language, text = _ELSEWHERE[kind]
        tabs.append((title, language, text.format(**_names(card, method))))
    return "\n".join(
        f'=== "{title}"\n\n{textwrap.indent(markdown.fence(language, text), "    ")}' for title, language, text in tabs
    )


def _kind(card: Card, method: type[Method]) -> str:
    """The method's kind; guards that learn, and losses that are for no classifier, have a way of their own."""
    if issubclass(method, Objective) and not method.logits:
        return "generative-objective"
    return "trained-guard" if issubclass(method, TrainedGuard) else card.kind


def _names(card: Card, method: type[Method]) -> dict[str, str]:
    # what a method cannot do without is spelt out; its class builds itself from the same text, so both forms agree
    spec = _GIVEN.get(card.id, card.id)
    built: Method = catalog.build(spec)
    given = ", ".join(f"{name}={value!r}" for name, value in built.spec.fields.items())
    return {
        "module": method.__module__,
        "name": method.__name__,
        "made": f"{method.__name__}({given})",
        "spec": str(built.spec),
        "quoted": f"'{built.spec}'" if built.spec.fields else card.id,
    }
