"""A hook of mkdocs: files outside of ``docs`` that pages show or link to are part of the site, at one place each.

The README is the first page. Links are written for readers of the checkout, ``../examples/x.py``; here they lead to the
site's own ``examples/x.py``.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "CONTRIBUTING.md": "CONTRIBUTING.md"}
"""Pages at the top of the checkout, and what they are on the site."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top, and the examples."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text().replace("](docs/", "](").replace("[docs/", "[")
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "examples").iterdir()):
        if path.is_file():
            files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links that leave ``docs`` lead to the site's copy; the check of links finds those that have none."""
    for name, address in PAGES.items():
        markdown = markdown.replace(f"](../{name}", f"]({address}")
    return markdown.replace("](../", "](")
