"""Writes docs/reference.md from the SDK's docstrings and the comments of the wire contract: `make reference`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import gradellm

PROJECT = Path(__file__).parents[1]
SDK = PROJECT / "client" / "gradellm"
PROTO = PROJECT / "proto" / "gradellm" / "v1" / "explainer.proto"
PAGE = PROJECT / "docs" / "reference.md"
FIRST = ("Client", "AsyncClient", "Explanation", "EvaluationReport", "Retry", "Tls")
BESIDE = {  # public, but not at the top
    "gradellm.explanation.queries": ("Part",),
    "gradellm.explanation.words": ("Word",),
    "gradellm.wire.keywords": (
        "CallKeywords",
        "InputKeywords",
        "AttributionKeywords",
        "GenerateKeywords",
        "AttributeKeywords",
        "EvaluateKeywords",
        "TokenizeKeywords",
    ),
    "gradellm.local.server": ("LocalServerKeywords",),
    "gradellm.explanation.io": ("read_jsonl", "write_jsonl"),
    "gradellm.explanation.verification": ("replay_keywords", "compared", "Verdict", "Mismatch"),
}


def main() -> str:
    """The page."""
    return (
        "# Reference\n\nMade by `make reference` from docstrings and from the comments of the wire contract.\n\n"
        f"- [The Python SDK](#the-python-sdk)\n- [The wire contract](#the-wire-contract)\n\n"
        f"## The Python SDK\n\n{''.join(python_part())}## The wire contract\n\n{''.join(proto_part())}"
    )


# --- Python ----------------------------------------------------------------------------------------------------------


def python_part() -> Iterator[str]:
    """Every public name, the most used first."""
    found = {node.name: (module, node) for module in sorted(SDK.rglob("*.py")) for node in _definitions(module)}
    names = [*FIRST, *sorted(set(gradellm.__all__) - {*FIRST, "__version__"})]
    for name in names:
        yield _described("gradellm", found[name][1])
    for module, its in BESIDE.items():
        for name in its:
            yield _described(module, found[name][1])


def _definitions(module: Path) -> Iterator[ast.ClassDef | ast.FunctionDef]:
    if "v1" in module.parts or "cli" in module.parts:
        return
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node


def _described(module: str, node: ast.ClassDef | ast.FunctionDef) -> str:
    title = f"### `{module}.{node.name}`\n\n"
    if isinstance(node, ast.FunctionDef):
        return f"{title}`{_signature(node)}`\n\n{_text(node)}"
    bases = [base for base in map(ast.unparse, node.bases) if base not in ("TypedDict", "Generic[Result]")]
    of = f"Of {', '.join(f'`{base}`' for base in bases)}. " if bases else ""
    return f"{title}{of}{_text(node)}{''.join(_members(node))}"


def _members(node: ast.ClassDef) -> Iterator[str]:
    body = node.body
    rows = []
    for here, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name) and here.target.id[0] != "_":
            said = _said_below(after)
            kind = ast.unparse(here.annotation).replace("|", "\\|")
            default = "" if here.value is None else f" = `{ast.unparse(here.value)}`"
            rows.append(f"| `{here.target.id}` | `{kind}`{default} | {said} |\n")
    if rows:
        yield "| | | |\n| --- | --- | --- |\n" + "".join(rows) + "\n"
    for item in body:
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and (
            item.name[0] != "_" or item.name == "__init__"
        ):
            decorators = set(map(ast.unparse, item.decorator_list))
            if decorators & {"property", "cached_property"}:
                yield f"**`.{item.name}`** → `{ast.unparse(item.returns) if item.returns else ''}`\n\n{_text(item)}"
            else:
                prefix = "await " if isinstance(item, ast.AsyncFunctionDef) else ""
                yield f"**`{prefix}{_signature(item, node.name)}`**\n\n{_text(item)}"


def _said_below(node: ast.stmt | None) -> str:
    """The text that stands under a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, of: str = "") -> str:
    arguments = ast.unparse(node.args)
    for own in ("self, ", "cls, ", "self", "cls"):
        arguments = arguments.removeprefix(own)
    name = of if node.name == "__init__" else node.name
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"{name}({arguments}){returns}"


def _text(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node) or ""
    return f"{text}\n\n" if text else ""


# --- the wire contract -----------------------------------------------------------------------------------------------


def proto_part() -> Iterator[str]:
    """Every service, message and enum with its comments."""
    comment: list[str] = []
    depth = 0
    in_oneof = ""
    for line in PROTO.read_text().splitlines():
        bare = line.strip()
        if bare.startswith("//"):
            comment.append(bare[2:].strip())
            continue
        said, comment = " ".join(comment), []
        if match := re.match(r"(service|message|enum) (\w+) \{(\})?", bare):
            yield f"### `{match[2]}` ({match[1]})\n\n{said}\n\n"
            depth = 0 if match[3] else 1
            if not match[3]:
                yield "| | | |\n| --- | --- | --- |\n"
        elif match := re.match(r"rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);", bare):
            yield f"| `{match[1]}` | `{match[2]}` → {match[3] or ''}`{match[4]}` | {said} |\n"
        elif match := re.match(r"oneof (\w+) \{", bare):
            in_oneof, depth = match[1], depth + 1
        elif match := re.match(r"((?:optional |repeated )?[\w.<>, ]+?) (\w+) = (\d+);", bare):
            of = f"one of {in_oneof}; " if in_oneof else ""
            yield f"| `{match[2]}` = {match[3]} | `{match[1]}` | {of}{said} |\n"
        elif match := re.match(r"(\w+) = (\d+);", bare):
            yield f"| `{match[1]}` = {match[2]} | | {said} |\n"
        elif bare == "}":
            depth -= 1
            in_oneof = ""
            if depth == 0:
                yield "\n"


if __name__ == "__main__":
    PAGE.write_text(main())
