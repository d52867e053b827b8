"""The documents: their code runs against a real server and gateway, their links and file names resolve."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn

from client.explanation.conftest import explanation
from gateway.conftest import running
from gradellm_engine import Engine
from gradellm_engine.demo_model import CHECKPOINT
from gradellm_engine.methods.registry import METHODS
from gradellm_engine.model.families import FAMILIES
from gradellm_server.settings import ServerSettings
from server.conftest import RunningServer

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for folder, pattern in ((PROJECT, "*.md"), (DOCS, "**/*.md"), (PROJECT / "deploy", "*.md"))
    for path in folder.glob(pattern)
)
# Pages that tests, programs or past versions wrote: they name files as those were.
RECORDS = ("CHANGELOG.md", "docs/gpu.md", "docs/real-models.md", "docs/trials.md")
# Pages of the site without a file in docs/: docs/site_hooks.py makes them.
ADDED_PAGES = (
    "changelog.md",
    "contributing.md",
    "design/architecture.md",
    "operations/deployment.md",
    "operations/security.md",
    "serving/flags.md",
)
SOURCE_ROOTS = ("client/gradellm", "gradellm_engine", "server")
MAX_LINES_OF_README = 150
MAX_FILES_OF_A_REQUEST = 12


def text_of(page: str) -> str:
    return (PROJECT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL)


# --- code -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """The addresses that the pages name, and those of this test's server and gateway."""
    server = RunningServer(Engine.load(str(CHECKPOINT)), ServerSettings(listen="127.0.0.1:0"))
    with running(server.address) as url:
        yield {"localhost:50051": server.address, "http://127.0.0.1:8080": url}
    server.close()


def with_addresses(block: str, addresses: dict[str, str]) -> str:
    for documented, actual in addresses.items():
        block = block.replace(documented, actual)
    return block


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run(
    addresses: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks(page, "python"), 1):
        try:
            exec(compile(with_addresses(block, addresses), f"{page}, block {number}", "exec"), names)
        except Exception as error:
            raise AssertionError(f"block {number} of {page} does not run:\n{block}") from error


def test_the_pages_that_show_code_are_run() -> None:
    """So that a change of a fence's language does not take a page out of the test above."""
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15
    assert {"README.md", "docs/quick-start.md", "docs/guides/python.md", "docs/guides/evaluate.md"} <= {
        page for page in PAGES if blocks(page, "python")
    }


@pytest.mark.parametrize("page", ["README.md", "docs/guides/chat.md"])
def test_curl_blocks_are_answered_with_scores(addresses: dict[str, str], page: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = [block for block in blocks(page, "sh") if block.startswith("curl")]
    assert commands
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", with_addresses(command, addresses)], capture_output=True, text=True, check=True, timeout=60
        )
        answer = json.loads(done.stdout)
        assert answer["choices"][0]["message"]["content"]
        assert answer["gradellm"]["attributions"][0]["scores"]


# --- links and names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+?)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)):
        if "://" not in target:
            path = (PROJECT / page).parent / target
            assert path.exists() or path.resolve() in map(DOCS.joinpath, ADDED_PAGES), f"{page} links to {target}"


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS and not page.startswith("deploy/")])
def test_files_that_pages_name_exist(page: str) -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|proto|toml|yml|yaml|txt|js|ts))`", text_of(page))
    named += re.findall(r"`(tests/[\w/]+)`", text_of(page))
    assert [name for name in named if not (PROJECT / name).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in RECORDS])
def test_modules_that_pages_run_exist(page: str) -> None:
    modules = re.findall(r"python -m (gradellm[\w.]*\w)", text_of(page))
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []


def test_the_readme_is_one_page() -> None:
    text = text_of("README.md")
    assert len(text.splitlines()) <= MAX_LINES_OF_README
    assert "make demo" in text
    assert "make test" in text


def test_the_architecture_names_every_package() -> None:
    """By its last folder, in backticks."""
    text = text_of("ARCHITECTURE.md")
    packages = [path.parent for root in SOURCE_ROOTS for path in (PROJECT / root).rglob("__init__.py")]
    missing = [
        folder.relative_to(PROJECT).as_posix()
        for folder in packages
        if not re.search(rf"`(?:[\w/]+/)?{folder.name}/?`", text)
    ]
    assert missing == []


def test_a_request_passes_few_files() -> None:
    section = text_of("ARCHITECTURE.md").split("## From the wire to the kernel and back")[1].split("\n## ")[0]
    files = re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE)
    assert 1 <= len(files) <= MAX_FILES_OF_A_REQUEST
    assert [name for name in files if not (PROJECT / name).exists()] == []


def test_every_method_has_a_page() -> None:
    assert [name for name in METHODS if not (DOCS / "methods" / f"{name}.md").exists()] == []
    table = text_of("docs/methods/index.md")
    assert [name for name in METHODS if f"| [`{name}`]({name}.md)" not in table] == []


def test_the_list_of_families_is_that_of_the_engine() -> None:
    section = text_of("docs/serving/models.md").split("\n## Families\n")[1].split("\n## ")[0]
    listed = section.strip().split("\n\n")[0].replace("\n", " ").removesuffix(".")
    assert listed.split(", ") == sorted(FAMILIES)


def test_every_design_note_has_a_date_and_evidence() -> None:
    for page in (page for page in PAGES if page.startswith("docs/design/") and not page.endswith("index.md")):
        for note in text_of(page).split("\n## ")[1:]:
            title = note.splitlines()[0]
            assert re.search(r"^\*\d{4}-\d\d-\d\d\.\*", note, re.MULTILINE), f"{page}, {title}: no date"
            assert "\nEvidence: " in note, f"{page}, {title}: no evidence"


# --- the site ---------------------------------------------------------------------------------------------------------


def test_the_site_adds_its_generated_pages() -> None:
    assert {*docs_module("site_hooks").INCLUDED, "serving/flags.md"} == {*ADDED_PAGES}


def test_links_of_included_pages_lead_to_pages_of_the_site() -> None:
    hooks = docs_module("site_hooks")
    text = (
        "[a](docs/methods/lime.md#code) [b](SECURITY.md) [c](deploy/compose.yaml) "
        "[deploy/compose.yaml](deploy/compose.yaml) [d](https://example.org) [e](#here)"
    )
    assert hooks.site_links(text, "README.md", "guides/readme.md") == (
        "[a](../methods/lime.md#code) [b](../operations/security.md) c (`deploy/compose.yaml`) "
        "`deploy/compose.yaml` "
        "[d](https://example.org) [e](#here)"
    )
    assert hooks.site_links("```\n[a](SECURITY.md)\n```\n", "README.md", "readme.md") == "```\n[a](SECURITY.md)\n```\n"


def test_formulas_become_mathml() -> None:
    hooks = docs_module("site_hooks")
    shown = hooks.mathml(r"\[ h_i = \mathrm{ReLU}(u_i) \tag{13} \]")
    assert "<math" in shown
    assert "(13)" in shown
    assert "tag" not in shown
    assert hooks.mathml(r"\(x_i\)").startswith("<math")


def test_the_flags_page_has_the_servers_flags() -> None:
    page = docs_module("site_hooks").flags_page()
    assert all(flag in page for flag in ("--batch-invariant", "--allow-origin", "--expires-days"))


def test_broken_links_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#part">b</a><a href="#top">a</a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<a href="missing.html">c</a><a href="https://example.org">d</a>')
    assert docs_module("check_site").faults(tmp_path) == [
        "a.html links to b.html#part, which has no such anchor",
        "a.html loads https://example.org/x.js",
        "b.html links to missing.html, which does not exist",
    ]


def docs_module(name: str) -> ModuleType:
    """A program of docs/, which is no package."""
    if name == "site_hooks":
        pytest.importorskip("mkdocs")
        pytest.importorskip("latex2mathml")
    return loaded(name, DOCS / f"{name}.py")


def loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- examples and the reference ---------------------------------------------------------------------------------------


def example(name: str) -> ModuleType:
    return loaded(name, DOCS / "examples" / f"{name}.py")


def test_the_fastapi_example_streams(addresses: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.setenv("GRADELLM_TARGET", addresses["localhost:50051"])
    server = uvicorn.Server(uvicorn.Config(example("fastapi_app").app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    body = json.dumps({"question": "Text: It was lovely."}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/ask", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [json.loads(line[6:]) for line in answer.read().decode().split("\n") if line]
    server.should_exit = True
    thread.join(10)
    assert [event["index"] for event in events if "token" in event] == [
        event["explains"] for event in events if "explains" in event
    ]
    assert all(event["scores"] for event in events if "explains" in event)


def test_the_gradio_example_shows_the_users_text() -> None:
    shown = example("gradio_app").highlighted(explanation())
    assert [text for text, _ in shown] == ["The", " cat", " s", "at", " on a mat"]
    assert max(share for _, share in shown) == 1.0


def test_the_reference_is_that_of_the_sources() -> None:
    for name, text in docs_module("write_reference").main().items():
        assert (DOCS / "reference" / name).read_text(encoding="utf-8") == text, "run make reference"
