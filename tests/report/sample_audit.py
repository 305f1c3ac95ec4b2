"""An audit around the findings in `sample_findings`."""

import numpy as np
import pyarrow as pa
from sample_findings import CLASSES, MODEL, POLICY, findings

from holdfast.audit.record import Audit, DataInfo, Environment, ModelInfo, SamplesInfo
from holdfast.audit.sections import AXES, summarise


def make_samples(shift=0, n=10_000):
    """One row per image. Models of another `shift` are right on almost the same images, as models in practice are."""
    label = np.random.default_rng(0).integers(0, 10, n)
    hard = np.random.default_rng(1).random(n) + 0.002 * np.random.default_rng(abs(shift)).random(n)
    right = np.zeros(n, dtype=bool)
    right[np.argsort(hard)[: round(0.9164 * n) + shift]] = True
    return pa.table(
        {
            "split": ["test"] * n,
            "index": np.arange(n),
            "label": label,
            "prediction": np.where(right, label, (label + 1) % 10),
            "confidence": 1 - 0.4 * hard,
            "accuracy.correct": right,
        }
    )


def make_audit(name="resnet20 on cifar10", *, classes=CLASSES, shift=0, data="0badc0ffee123456"):
    """An audit of fifteen areas; `shift` correct answers more than usual, `data` the fingerprint of the images."""
    found = findings(classes, shift)
    return Audit(
        name=name,
        created="2026-02-03T10:15:00+00:00",
        seconds=412.7,
        command=f"holdfast audit {MODEL} --profile standard",
        model=ModelInfo(
            name="resnet20",
            architecture="resnet20",
            parameters=269_722,
            fingerprint="5d1c0a9be2f34c77",
            weights="9f2b6c1d3e4a5f60718293a4b5c6d7e8",
        ),
        data=DataInfo(
            name="cifar10",
            sizes={"test": 10_000, "train": 50_000, "ood/cifar100": 10_000},
            used={"test": 10_000, "train": 10_000},
            classes=list(classes),
            shape=[3, 32, 32],
            fingerprint=data,
        ),
        profile={"name": "standard", "test_images": None, "attack_images": 1000, "severities": [1, 2, 3, 4, 5]},
        policy=POLICY,
        environment=Environment(
            holdfast="0.1.0",
            code="aa11bb22cc33dd44",
            python="3.12.4",
            torch="2.8.0",
            numpy="2.1.0",
            platform="Linux x86_64",
            device="cpu",
            threads=2,
            seed=0,
        ),
        sections=[summarise(axis, [f for f in found if f.section == axis.id]) for axis in AXES],
        findings=found,
        samples_info=SamplesInfo(rows=0, columns=[], sha256=""),
    ).sealed(make_samples(shift))


def hostile(audit, text):
    """The audit with `text` in place of every free text but the ids, as a liar would write it."""
    kept = {
        "section",
        "check",
        "id",
        "verdict",
        "kind",
        "type",
        "unit",
        "better",
        "schema_version",
        "png",
        "metric",
        "metrics",
    }

    def swap(value, key=""):
        if isinstance(value, dict):
            return {k: swap(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [swap(v, key) for v in value]
        return text if isinstance(value, str) and key not in kept else value

    content = audit.to_json()
    policy = content.pop("policy")
    content = swap(content) | {"policy": policy | {"name": text, "version": text, "dated": text, "reason": text}}
    return Audit.model_validate(content)
