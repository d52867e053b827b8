"""Logging of the process: lines of text, or JSON lines. No text of a prompt is ever logged."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from gradellm_server.observability.redacted_tracebacks import RedactingFormatter

FORMATS = ("text", "json")
FIELDS = "fields"  # the attribute of a record that holds its own fields, by name

logger = logging.getLogger("gradellm")


class JsonFormatter(RedactingFormatter):
    """A record as one line of JSON: time, level, logger, message, then its own fields, and an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        values: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            values["stack"] = self.formatStack(record.stack_info)
        return json.dumps(values, ensure_ascii=False, default=str)


class TextFormatter(RedactingFormatter):
    """A record as a line of text, with its own fields after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """See `logging.Formatter`."""
        fields = getattr(record, FIELDS, {})
        suffix = "".join(f" {name}={value}" for name, value in fields.items() if value not in ("", None))
        return super().formatMessage(record) + suffix


def configure(style: str, level: str) -> None:
    """Log records of at least `level` to standard error, in the style `text` or `json`.

    Has no effect if the root logger has a handler already.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def report_stage(stage: str) -> None:
    """Tell the operator what the server is doing, whatever the log level: a line, or a record if records are JSON."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logger.info("%s", stage)
    else:
        print(f"gradellm: {stage}", file=sys.stderr, flush=True)
