"""Builders of the pages that are made from the code; `docs/hooks.py` hands them to mkdocs. None of it is published."""
