"""LangChain's standard tests of a chat model with ChatOpenAI, on SmolLM2 with a chat template that has tools."""

from __future__ import annotations

import pytest

from gateway.clients.conftest import PROGRAMS, program, run

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
# A loop for the session, as ChatOpenAI's connections outlive a test; none of this project's settings and fixtures.
OPTIONS = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
OPTIONS += [part for scope in ("test", "fixture") for part in ("-o", f"asyncio_default_{scope}_loop_scope=session")]
# The model is too weak for these, in vLLM as well: to name both keys of an object without a schema, and to call a
# tool of its own accord.
EXCUSED = ["test_json_mode", "test_agent_loop"]


def test_standard_tests_pass(tools_url: str) -> None:
    selected = ["-k", " and ".join(f"not {name}" for name in EXCUSED), "--rootdir", str(PROGRAMS)]
    command = [str(program("clients-*/bin/python")), "-m", "pytest", *OPTIONS, *selected]
    said = run(*command, PROGRAMS / "langchain_standard.py", GRADELLM_URL=tools_url, GRADELLM_CLIENT_MODEL="gradellm")
    assert " passed" in said
