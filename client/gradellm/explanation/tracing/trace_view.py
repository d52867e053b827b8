"""Draws a trace as text: a table of the prompt's parts, the words that it went through, and what is unexplained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gradellm.explanation.reasoning import REASONING
from gradellm.explanation.tracing.trace import REASONS
from gradellm.rendering.terminal import Style, display_width, isolated, visible

if TYPE_CHECKING:
    from gradellm.explanation.tracing.trace import Trace

__all__ = ["draw_trace"]

_PLAIN = Style(width=80, color=False, theme="dark")
_MAX_PARTS = 10
_MAX_WORDS = 8
_LEAST = 0.005  # a smaller share rounds to 0 %


def draw_trace(trace: Trace, style: Style = _PLAIN) -> str:
    """Return the trace as lines of text: the ten largest parts without template, then the rest in one line."""
    reasoning = any(part.reasoning >= _LEAST for part in trace.parts)
    names = ("share", "direct", "through", *(("reasoning",) if reasoning else ()))
    lines = [
        style.bold(_shown(trace.selection)),
        style.dim("  ".join(f"{name:>9}" for name in names) + f"  {trace.by}"),
    ]
    top = [part for part in trace.top(_MAX_PARTS) if part.share >= _LEAST]
    for part in top:
        shares = (part.share, part.direct, part.through, *((part.reasoning,) if reasoning else ()))
        numbers = "  ".join(f"{_percent(share):>9}" for share in shares)
        label = _cut(visible(part.label.strip()) or "(none)", style.width - len(numbers) - 2)
        lines.append(f"{numbers}  {isolated(label)}")
    rest = 1 - trace.unexplained - sum(part.share for part in top)
    if rest >= _LEAST:
        lines.append(style.dim(f"{_percent(rest):>9}  other parts and the template"))
    words = sorted((word for word in trace.words if word.share >= _LEAST), key=lambda word: -word.share)[:_MAX_WORDS]
    if words:
        lines.append("through " + " · ".join(f"{_shown(word.word.text)} {_percent(word.share)}" for word in words))
    if trace.reasoning >= _LEAST:
        lines.append(f"through {REASONING} {_percent(trace.reasoning)}")
    lines += [
        f"unexplained {_percent(item.share)}: {REASONS[item.reason]}" for item in trace.reasons if item.share >= _LEAST
    ]
    return "\n".join(lines) + "\n"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _shown(text: str) -> str:
    return isolated(visible(text.strip()))


def _cut(text: str, width: int) -> str:
    """Return the beginning of a text that fits into `width` columns."""
    if len(text) <= width and display_width(text) <= width:
        return text
    text = text[: max(1, width)]
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return text + "…"
