"""Findings made by hand: the numbers of a small CIFAR-10 network, with every kind of figure."""

import base64
import io

import numpy as np
from PIL import Image

from holdfast import stats
from holdfast.audit.findings import Action, Chart, Finding, Gallery, Metric, Picture, Series, Table
from holdfast.audit.policy import decide, load_policy
from holdfast.audit.sections import worst

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECALLS = (0.93, 0.97, 0.88, 0.82, 0.91, 0.86, 0.95, 0.94, 0.96, 0.94)
NOISES = ["gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "glass-blur", "motion-blur", "zoom-blur"]
NOISES += ["snow", "frost", "fog", "brightness", "contrast", "elastic", "pixelate", "jpeg"]
MODEL = "--model resnet20 --weights zoo:cifar10-resnet20 --data cifar10"
SETTINGS = {"images": 1000, "attacks": {"pgd": {"spec": "pgd(eps=8/255)", "images": 1000}}, "enough": 10}
POLICY = load_policy()


def number(name, value, low=None, high=None, n=None, unit="value", better="lower", title="", **more):
    return Metric(name=name, value=value, low=low, high=high, n=n, unit=unit, better=better, title=title, **more)


def rate(name, k, n, better="higher", title=""):
    low, high = stats.wilson(k, n)
    return number(name, k / n, low, high, n, "rate", better, title)


def png(seed, size=32):
    """A small picture with some structure, as base64."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def judged(section, check, title, metrics, actions=(), **more):
    """A finding with the default policy's verdict; advice only where it does not pass."""
    decisions = [decide(m, rule) for m in metrics if (rule := POLICY.rule(check, m.name)) is not None]
    verdict = worst([d.verdict for d in decisions])
    reason = " ".join(d.reason for d in decisions if d.verdict == verdict)
    return Finding(
        section=section,
        check=check,
        title=title,
        verdict=verdict,
        reason=reason or "Measured and reported; the policy has no limit for it.",
        metrics=metrics,
        decisions=decisions,
        actions=list(actions) if verdict in ("fail", "attention") else [],
        seconds=3.2,
        **more,
    )


def findings(classes=CLASSES, shift=0):
    """All findings; `shift` correct answers more than usual on 10,000 images."""
    return [
        *sanity(),
        accuracy(classes, shift),
        gap(),
        calibration(),
        corruption(),
        evasion(classes),
        ood(),
        privacy(),
        faults(),
        Finding(
            section="fairness",
            check="group-fairness",
            title="Groups",
            verdict="not assessed",
            reason="The test images name no groups; a column 'group' with a value for each image would.",
        ),
        efficiency(),
    ]


def sanity():
    table = Table(
        title="Tests of the gradients",
        columns=["test", "value", "limit", "result"],
        rows=[
            ["one step beats iterative", 0.002, 0.0, "ok"],
            ["black box beats white box", 0.0, 0.02, "ok"],
            ["more steps help", 0.012, 0.01, "warning"],
            ["unbounded attack fails", None, 0.02, "not tried"],
        ],
    )
    more = Action(text="Attack with more steps.", method="pgd", command=f"holdfast attack 'pgd(steps=100)' {MODEL}")
    yield judged(
        "sanity",
        "determinism",
        "Determinism",
        [
            number("logit-difference", 2.4e-6, n=256, title="largest logit difference"),
            number("label-flips", 0.0, n=256, unit="rate", title="labels that change"),
        ],
    )
    yield judged(
        "sanity",
        "gradient-masking",
        "Masked gradients",
        [number("failed-tests", 0, unit="count", n=200), number("warnings", 1, unit="count", n=200)],
        [more],
        figures=[table],
    )


def accuracy(classes, shift):
    recalls = [min(0.99, r + shift / 10_000) for r in RECALLS]
    bounds = [stats.wilson(round(1000 * r), 1000) for r in recalls]
    low, high = ([round(b[side], 4) for b in bounds] for side in (0, 1))
    shares = (np.random.default_rng(5).dirichlet(np.full(10, 0.1), 10) * 0.1 + np.eye(10) * 0.9).round(3)
    return judged(
        "accuracy",
        "accuracy",
        "Accuracy per class",
        [
            rate("accuracy", 9164 + shift, 10_000),
            number("worst-class-gap", 0.0964, 0.073, 0.121, 10_000, "points", title="mean less worst class"),
            *(rate(f"recall/{c}", round(1000 * r), 1000) for c, r in zip(classes, recalls, strict=True)),
        ],
        [Action(text="Collect or weight images of the worst classes.")],
        figures=[
            Chart(
                kind="bar",
                title="Recall per class",
                y_label="share recognised",
                series=[Series(name="recall", x=list(classes), y=recalls, low=low, high=high)],
                y_range=(0, 1),
                level=0.9164 + shift / 10_000,
                level_label="accuracy",
            ),
            Chart(
                kind="heatmap",
                title="Who is taken for whom",
                x_label="predicted",
                y_label="true class",
                series=[Series(name=c, x=list(classes), y=y.tolist()) for c, y in zip(classes, shares, strict=True)],
                y_range=(0, 1),
            ),
            Gallery(
                title="Most confident mistakes",
                groups=[
                    [Picture(png=png(90 + i), label=f"{classes[3]}, {99 - i} %", note="labelled")] for i in range(8)
                ],
            ),
        ],
        settings=SETTINGS,
        per_sample=["accuracy.correct"],
    )


def gap():
    low, high = 0.073, 0.085
    flat = Action(text="Train towards a flatter minimum.", method="sam", command="holdfast show sam")
    gap = number("gap", 0.079, low, high, 10_000, "points", title="training less test accuracy")
    return judged("accuracy", "generalisation-gap", "Generalisation gap", [gap], [flat])


def calibration():
    x = [round(0.05 + 0.1 * i, 2) for i in range(10)]
    return judged(
        "calibration",
        "calibration",
        "Calibration",
        [
            number("ece", 0.038, 0.034, 0.043, 10_000, "rate", title="calibration error"),
            number("nll", 0.312, 0.298, 0.327, 10_000, "nats", title="negative log likelihood"),
            number("brier", 0.131, 0.126, 0.136, 10_000, title="Brier score"),
        ],
        [Action(text="Fit a temperature on held-out images.", method="temperature-scaling")],
        figures=[
            Chart(
                kind="line",
                title="Reliability",
                x_label="confidence",
                y_label="accuracy",
                diagonal=True,
                y_range=(0, 1),
                series=[
                    Series(name="as it is", x=x, y=[v**1.25 for v in x]),
                    Series(name="after temperature scaling", x=x, y=[min(1.0, v + 0.01) for v in x]),
                ],
            ),
            Chart(
                kind="histogram",
                title="Confidence",
                x_label="confidence",
                y_label="images",
                log_y=True,
                series=[
                    Series(name="right", x=x, y=[1, 10, 40, 80, 120, 180, 260, 420, 900, 7154]),
                    Series(name="wrong", x=x, y=[0, 20, 60, 90, 110, 120, 118, 120, 98, 100]),
                ],
            ),
        ],
        settings=SETTINGS,
    )


def corruption():
    steps = [1.0, 2.0, 3.0, 4.0, 5.0]
    kept = {name: [round(0.9 - (0.02 + 0.011 * (i % 7)) * s, 3) for s in steps] for i, name in enumerate(NOISES)}
    worst_four = ("fog", "zoom-blur", "elastic", "snow")
    frame = {"x_label": "severity", "y_range": (0, 1)}
    return judged(
        "corruption",
        "corruption",
        "Common corruptions",
        [
            number("relative-drop", 0.231, 0.224, 0.238, 1000, "rate", title="accuracy lost"),
            rate("accuracy", 52_800, 75_000, title="mean accuracy under corruption"),
        ],
        [Action(text="Train with augmentation that resembles the corruptions you expect.")],
        figures=[
            Chart(
                kind="heatmap",
                title="Accuracy by corruption",
                y_label="corruption",
                series=[Series(name=name, x=steps, y=y) for name, y in kept.items()],
                **frame,
            ),
            Chart(
                kind="line",
                title="The four worst",
                y_label="accuracy",
                series=[Series(name=name, x=steps, y=kept[name]) for name in worst_four],
                **frame,
            ),
        ],
        limitations=["Corruptions are simulated; a real camera fails in other ways as well."],
    )


def evasion(classes):
    eps = [0, 1, 2, 4, 8, 12, 16]
    pgd, square = [0.916, 0.62, 0.31, 0.05, 0.002, 0, 0], [0.916, 0.88, 0.79, 0.55, 0.18, 0.06, 0.01]
    low, high = [max(0, v - 0.03) for v in pgd], [min(1, v + 0.03) for v in pgd]
    trio = [("clean", classes[3]), ("adversarial", classes[5]), ("amplified 16x", "difference")]
    return judged(
        "evasion",
        "evasion",
        "Attacks",
        [
            rate("robust-accuracy", 2, 1000, title="accuracy under the strongest attack"),
            rate("fgsm-accuracy", 111, 1000, title="accuracy under FGSM"),
            rate("square-accuracy", 181, 1000, title="accuracy under Square"),
            number("square-median-queries", 143, n=500, unit="count", better="higher"),
            number("half-radius", 1.5 / 255, unit="radius", better="higher"),
        ],
        [
            Action(text="Train against attacks of this size.", method="pgd-at", command="holdfast show pgd-at"),
            Action(text="Limit queries where only answers are exposed."),
        ],
        figures=[
            Chart(
                kind="line",
                title="Accuracy over the size of the change",
                x_label="eps, in 1/255",
                y_label="accuracy",
                y_range=(0, 1),
                level=0.1,
                level_label="chance",
                series=[
                    Series(name="PGD", x=eps, y=pgd, low=low, high=high),
                    Series(name="Square", x=eps, y=square),
                    Series(name="noise", x=eps, y=[0.916 - 0.002 * v for v in eps]),
                ],
            ),
            Gallery(
                title="Adversarial examples",
                groups=[
                    [Picture(png=png(10 * i + k), label=label, note=note) for k, (note, label) in enumerate(trio)]
                    for i in range(6)
                ],
                caption="The first test images that fell.",
            ),
        ],
        settings=SETTINGS,
        per_sample=["evasion.robust"],
        limitations=["An attack gives an upper bound: a stronger one may do better."],
    )


def ood():
    found = {"knn": (0.962, 0.912), "energy": (0.941, 0.887), "max-logit": (0.938, 0.885), "msp": (0.917, 0.871)}
    rows = [[d, s, v[i], 1.2 - v[i], 2000] for d, v in found.items() for i, s in enumerate(("noise", "cifar100"))]
    sets = [Series(name=s, x=list(found), y=[v[i] for v in found.values()]) for i, s in enumerate(("far", "near"))]
    many = [number(f"auroc/{r[0]}/{r[1]}", r[2], r[2] - 0.01, r[2] + 0.01, 2000, better="higher") for r in rows]
    return judged(
        "ood",
        "ood",
        "Unknown inputs",
        [
            number("far-auroc", 0.962, 0.953, 0.971, 2000, better="higher", title="AUROC, far sets"),
            number("near-auroc", 0.912, 0.901, 0.922, 2000, better="higher", title="AUROC, near set"),
            *many,
        ],
        figures=[
            Chart(kind="bar", title="AUROC per detector", y_label="AUROC", y_range=(0.5, 1), series=sets),
            Table(
                title="Detectors",
                columns=["detector", "set", "AUROC", "FPR at 95 % TPR", "images"],
                rows=rows,
                percent=["FPR at 95 % TPR"],
            ),
        ],
    )


def privacy():
    x = [10 ** (-3 + 3 * i / 60) for i in range(61)]
    roc = Series(name="loss", x=x, y=[min(1, 1.3 * v) for v in x])
    chart = Chart(kind="line", title="Members recognised", log_x=True, log_y=True, diagonal=True, series=[roc])
    found = rate("tpr-at-fpr-1", 47, 2000, "lower", "members recognised at 1 % false alarms")
    return judged("privacy", "membership-inference", "Membership inference", [found], figures=[chart])


def faults():
    y, low, high = [0.916, 0.912, 0.85, 0.31], [0.91, 0.9, 0.7, 0.1], [0.92, 0.92, 0.91, 0.6]
    line = Series(name="mean", x=[1e-7, 1e-6, 1e-5, 1e-4], y=y, low=low, high=high)
    chart = Chart(
        kind="line", title="Accuracy by flip rate", x_label="flips", log_x=True, y_range=(0, 1), series=[line]
    )
    lost = number("drop-at-1e-6", 0.004, 0.001, 0.012, 10, "points", title="accuracy lost at 1e-6")
    return judged("fault", "bit-flips", "Weight faults", [lost], [Action(text="Keep a checksum.")], figures=[chart])


def efficiency():
    return judged(
        "efficiency",
        "efficiency",
        "Cost",
        [
            number("parameters", 269_722, unit="count"),
            number("flops", 40_810_000, unit="flops", title="operations for one image"),
            number("size", 1_092_318, unit="bytes"),
            number("latency-p95", 4.83, unit="ms", volatile=True, title="latency, 95th percentile"),
            number("throughput", 1834.0, unit="images/s", better="higher", volatile=True),
        ],
    )
