"""The command line of the gateway."""

from __future__ import annotations

import pytest

from gradellm_gateway.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "8080"], "is not HOST:PORT"),
        (["--listen", "0.0.0.0:8080"], "--insecure"),
        (["--tls-cert", "x"], "need each other"),
        (
            ["--tls-cert", "absent.pem", "--tls-key", "absent.key"],
            "--tls-cert absent.pem and --tls-key absent.key cannot",
        ),
        (["--max-connections", "0"], "must be at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err
