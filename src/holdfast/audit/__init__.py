"""The audit: checks by section, held against a policy, as findings with a verdict.

`audit` asks every `Check` of a model and its data. A check measures and the `Policy` decides; a new check is one file
in ``audit/checks``.
"""

from holdfast.audit.check import Answer, Check, Remedy, all_checks, rate
from holdfast.audit.findings import (
    SCHEMA_VERSION,
    VERDICTS,
    Action,
    Chart,
    Decision,
    Finding,
    Gallery,
    Metric,
    Picture,
    Section,
    Series,
    Table,
    Verdict,
)
from holdfast.audit.policy import Policy, Rule, decide, load_policy
from holdfast.audit.predictions import Predictions
from holdfast.audit.profiles import PROFILES, Profile
from holdfast.audit.record import Audit, json_schema
from holdfast.audit.runner import audit
from holdfast.audit.subject import Subject

__all__ = [
    "PROFILES",
    "SCHEMA_VERSION",
    "VERDICTS",
    "Action",
    "Answer",
    "Audit",
    "Chart",
    "Check",
    "Decision",
    "Finding",
    "Gallery",
    "Metric",
    "Picture",
    "Policy",
    "Predictions",
    "Profile",
    "Remedy",
    "Rule",
    "Section",
    "Series",
    "Subject",
    "Table",
    "Verdict",
    "all_checks",
    "audit",
    "decide",
    "json_schema",
    "load_policy",
    "rate",
]
