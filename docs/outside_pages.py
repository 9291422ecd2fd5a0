"""MkDocs hook: files of the repository outside docs/ are pages and pictures of the site, at their own paths.

A link that leads to such a file from a page of docs/ starts with "../", as GitHub wants it; here docs/ is the root.
An inner product <x, y> in prose is text, on GitHub and here, though Python-Markdown would take it for a tag.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from markdown import Extension, Markdown
from markdown.inlinepatterns import HtmlInlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "bench/results/*.md",
    "bench/results/**/*.svg",
    "wcord_fast/ops/*/README.md",
)
LINK = re.compile(r"(\]\()([^)#\s:]+)(?=[)#\s])")
TAG = r"""(</?[a-z][\w-]*(?:\s+[\w:-]+(?:="[^"]*")?)*\s*/?>|<!--.*?-->)"""


class TagsOnly(Extension):
    """Raw HTML within a line is a lower-case tag with attributes, and nothing else."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.inlinePatterns.register(HtmlInlineProcessor(TAG, md), "html", 90)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.markdown_extensions.append(TagsOnly())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository become links of the site."""
    inside = Path(page.file.abs_src_path or "").is_relative_to(config.docs_dir)
    page_path = posixpath.join("docs", page.file.src_uri) if inside else page.file.src_uri

    def relinked(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page_path), match[2]))
        target = target.removeprefix("docs/")
        if files.get_file_from_path(target) is None:
            return match[0]  # MkDocs warns of it
        return match[1] + posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(relinked, markdown)
