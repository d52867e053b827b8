"""MkDocs hooks: pages from files outside docs/, links to the repository, the page of flags, and formulas as MathML."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PROJECT = Path(__file__).parents[1]
HELP = PROJECT / "tests" / "api" / "help.txt"
# Pages of the site whose source is outside docs/.
INCLUDED = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "design/architecture.md": "ARCHITECTURE.md",
    "operations/deployment.md": "deploy/README.md",
    "operations/security.md": "SECURITY.md",
}
SERVING_COMMANDS = ("gradellm serve", "gradellm gateway", "gradellm token")
_PAGES = {source: page for page, source in INCLUDED.items()}
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
_FLAG = re.compile(r"<code>(--[\w-]+)</code>")
_FENCE = re.compile(r"^( *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    for page, source in INCLUDED.items():
        text = site_links((PROJECT / source).read_text(encoding="utf-8"), source, page)
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, "serving/flags.md", content=flags_page()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Rewrite links that lead out of docs/."""
    name = page.file.src_uri
    return markdown if name in INCLUDED else site_links(markdown, f"docs/{name}", name)


def on_page_content(content: str, **_: object) -> str:
    """Replace LaTeX by MathML, which browsers draw without a script, and keep flags on one line."""
    content = _FLAG.sub(r'<code class="flag">\1</code>', content)
    return _FORMULA.sub(lambda found: mathml(html.unescape(found[2])), content)


def site_links(markdown: str, source: str, page: str) -> str:
    """Rewrite the relative links of a file of the repository for its page of the site.

    A link to a file that has a page leads there; one to any other file of the repository becomes its path as code.

    Args:
        markdown: the text.
        source: its path in the repository.
        page: its path in docs/.
    """

    def rewritten(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if not target or ":" in target:
            return link[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target))
        if path in _PAGES or path.startswith("docs/"):
            there = _PAGES.get(path, path.removeprefix("docs/"))
            return f"[{text}]({os.path.relpath(there, os.path.dirname(page) or '.')}{anchor})"
        if (PROJECT / path).exists():
            return f"`{path}`" if path.endswith(text.strip("`")) else f"{text} (`{path}`)"
        return link[0]

    parts = _FENCE.split(markdown)
    return "".join(part if part.lstrip().startswith("```") else _LINK.sub(rewritten, part) for part in parts)


def mathml(latex: str) -> str:
    """A formula as MathML; a display formula with its equation number, from LaTeX's tag command."""
    body = latex.strip()[2:-2]
    tag = re.search(r"\\tag\{([^}]*)\}", body)
    body = re.sub(r"\\tag\{[^}]*\}", "", body).strip()
    if latex.strip().startswith(r"\("):
        return _without_escapes(convert(body))
    number = f'<span class="equation-number">({tag[1]})</span>' if tag else ""
    return f'<div class="equation">{_without_escapes(convert(body, display="block"))}{number}</div>'


def _without_escapes(formula: str) -> str:
    """MathML whose texts have no LaTeX escapes; the converter leaves those of underscores."""
    return formula.replace(r"\_", "_")


def flags_page() -> str:
    """The help texts of the serving commands, from the snapshot that the tests compare with the commands."""
    helps = dict(re.findall(r"^\$ (.+?) --help\n(.*?)(?=^\$ |\Z)", HELP.read_text(encoding="utf-8"), re.M | re.S))
    parts = [f"## `{command}`\n\n```text\n{helps[command].strip()}\n```\n\n" for command in SERVING_COMMANDS]
    links = ", ".join(f"[`{command}`](#{command.replace(' ', '-')})" for command in SERVING_COMMANDS)
    head = "---\nhide:\n  - toc\n---\n"  # the lines need its width
    return f"{head}# Flags\n\nThe output of `--help`, with defaults in brackets: {links}.\n\n" + "".join(parts)
