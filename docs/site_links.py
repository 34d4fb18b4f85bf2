"""A hook of MkDocs: the site brings along what a page links to outside ``docs``, such as records and source files.

A page can therefore be read in a checkout and on the site, and a link to a file that is gone fails the strict build.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
_ROLE = re.compile(r":(?:meth|class|func|data|mod|attr):(<code>)~?\.*")
_LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)\)")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Point links that leave ``docs`` at copies below ``files/``; a folder's link becomes its text."""

    def moved(match: re.Match[str]) -> str:
        text, link = match.groups()
        target = (ROOT / "docs" / link).resolve()
        if not target.exists() or not target.is_relative_to(ROOT):
            raise PluginError(f"{page.file.src_uri} links to {link}, which is not in the repository")
        if target.is_dir():
            return text
        # As text, so that a browser shows it and MkDocs makes no page of it.
        as_text = target.suffix in (".md", ".py", ".cu", ".cpp", ".sh", ".toml", "")
        name = f"files/{target.relative_to(ROOT).as_posix()}{'.txt' if as_text else ''}"
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, content=target.read_bytes()))
        return f"[{text}]({name})"

    return _LINK.sub(moved, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Docstrings name code with Sphinx's roles, as in ``:class:`Name```: show the name alone."""
    return _ROLE.sub(r"\1", html)
