"""LangChain's standard tests of a chat model with ChatOpenAI, on SmolLM2 with a chat template that has tools.

Those for which SmolLM2 is too weak are run on Qwen2.5-Coder-1.5B-Instruct.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.clients.conftest import PROGRAMS, gateway_of, program, run, with_template
from gradellm_gateway.tools.forms import AnswerForms
from support.tools.templates import HERMES

pytestmark = [pytest.mark.real, pytest.mark.timeout(1800)]
# A loop for the session, as ChatOpenAI's connections outlive a test; none of this project's settings and fixtures.
OPTIONS = ["-c", "/dev/null", "--noconftest", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
OPTIONS += [part for scope in ("test", "fixture") for part in ("-o", f"asyncio_default_{scope}_loop_scope=session")]
# To name both keys of an object without a schema, and to call a tool of its own accord.
FOR_QWEN = ["test_json_mode", "test_agent_loop"]


@pytest.fixture(scope="module")
def qwen_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API's base of a gateway in front of Qwen, which reads calls as JSON without tags.

    Qwen writes no tags, in vLLM as well: with its own template a block of Markdown, with this one JSON alone.
    """
    folder = with_template("qwen", HERMES, tmp_path_factory.mktemp("qwen-tools"))
    with gateway_of(folder, dtype="bfloat16", forms=AnswerForms("llama3_json")) as url:
        yield url


def run_tests(url: str, selection: str) -> str:
    """Run LangChain's tests whose names match; what pytest says."""
    command = [str(program("clients-*/bin/python")), "-m", "pytest", "-rA", *OPTIONS, "-k", selection]
    command += ["--rootdir", str(PROGRAMS), str(PROGRAMS / "langchain_standard.py")]
    return run(*command, GRADELLM_URL=url, GRADELLM_CLIENT_MODEL="gradellm")


def test_standard_tests_pass(tools_url: str) -> None:
    said = run_tests(tools_url, " and ".join(f"not {name}" for name in FOR_QWEN))
    assert " passed" in said


def test_standard_tests_pass_on_qwen(qwen_url: str) -> None:
    said = run_tests(qwen_url, " or ".join(FOR_QWEN))
    assert "3 passed" in said
