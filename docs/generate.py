"""Rewrite `docs/evidence.md` from the ledger; it is committed, so that the evidence can be read without building."""

from pathlib import Path

from holdfast.files import write_text
from holdfast.proofs.ledger import evidence_page, latest

PAGE = Path(__file__).with_name("evidence.md")


def main() -> None:
    """Write the page."""
    write_text(PAGE, evidence_page(latest()))


if __name__ == "__main__":
    main()
