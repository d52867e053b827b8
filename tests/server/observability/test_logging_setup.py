"""Log records as text and as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gradellm_server.observability import logging_setup


@contextmanager
def configured(style: str, level: str) -> Iterator[None]:
    """Logging as in a separate process, without pytest's handlers."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    root.handlers.clear()
    try:
        logging_setup.configure(style, level)
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(before)


def test_every_record_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    with configured("json", "info"):
        logging.getLogger("somebody.else").warning("%d of\nthem", 3)
        logging.getLogger("x").debug("too fine")
        try:
            raise ValueError(
                "".join(["w", "rong"])
            )  # built at run time, so that no source line in a traceback shows it
        except ValueError:
            logging.getLogger("x").exception("it failed")
        logging_setup.report_stage("loading weights")
        logging.getLogger("x").info("done", extra={logging_setup.FIELDS: {"id": "7", "seconds": 0.5}})
    first, failed, stage, last = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (first["level"], first["logger"], first["message"]) == ("warning", "somebody.else", "3 of\nthem")
    assert first["time"].endswith("+00:00")
    assert "ValueError" in failed["exception"]
    assert "wrong" not in json.dumps(failed)  # the exception's message may quote a prompt
    assert (stage["logger"], stage["message"]) == ("gradellm", "loading weights")
    assert (last["id"], last["seconds"]) == ("7", 0.5)


def test_text_has_fields_after_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    fields = {"id": "7", "client": None, "reason": "", "zero": 0}
    with configured("text", "info"):
        logging.getLogger("x").info("done", extra={logging_setup.FIELDS: fields})
        logging_setup.report_stage("loading weights")
    done, stage = capsys.readouterr().err.splitlines()
    assert done.endswith("INFO x: done id=7 zero=0")
    assert stage == "gradellm: loading weights"


def test_the_root_logs_to_standard_error() -> None:
    with configured("text", "error"):
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        assert handler.stream is sys.stderr
