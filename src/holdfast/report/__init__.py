"""What people read of an audit: the report as one HTML file, the model card, and comparisons of several audits.

Everything is made from an `Audit` alone, offline, and equal audits give equal files. Certificates of unlearning have a
page of their own.
"""

from holdfast.report.card import model_card, write_model_card
from holdfast.report.certificate import write_certificate
from holdfast.report.charts import draw
from holdfast.report.compare import Comparison, compare
from holdfast.report.comparison import write_comparison
from holdfast.report.differences import Difference
from holdfast.report.report import write_report
from holdfast.report.schema import audit_schema, write_schema

__all__ = [
    "Comparison",
    "Difference",
    "audit_schema",
    "compare",
    "draw",
    "model_card",
    "write_certificate",
    "write_comparison",
    "write_model_card",
    "write_report",
    "write_schema",
]
