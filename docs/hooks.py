"""Pages made from the code when the site is built, so that none of them can fall behind it.

mkdocs calls `on_config` and `on_files`. A page that can be read off the code (a method's card, a check, a command, a
class) is made in `_hooks` and lies nowhere in the repository; what needs judgement is written by hand beside this file.
"""

from __future__ import annotations

from _hooks import site
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the generated pages into the navigation."""
    config.nav = site.grown(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for path, content in site.pages().items():
        files.append(File.generated(config, path, content=content))
    return files
