"""How the process logs: lines for people, or a JSON object a line for programs. No prompt text is ever logged."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

from gradellm_server.observability.redacted_tracebacks import WithoutWords

FORMATS = ("text", "json")
FIELDS = "fields"  # of a record: what it says beside its message, by name

logger = logging.getLogger("gradellm")


class JsonFormatter(WithoutWords):
    """A record as one line of JSON: time, level, logger, message, then its own fields, and an exception's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = self.formatStack(record.stack_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class TextFormatter(WithoutWords):
    """A record as a line for people, its own fields after the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (logging's name)
        """The line without traceback."""
        fields = getattr(record, FIELDS, {})
        said = "".join(f" {name}={value}" for name, value in fields.items() if value not in ("", None))
        return super().formatMessage(record) + said


def configure(style: str, level: str) -> None:
    """Send all records of at least `level` to standard error, as `text` or `json`, unless they go somewhere already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def say(stage: str) -> None:
    """What the process is at: a line for whoever started it, whatever the level; a record where records are JSON."""
    if any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers):
        logger.info("%s", stage)
    else:
        print(f"gradellm: {stage}", file=sys.stderr, flush=True)
