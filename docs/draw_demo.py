"""Draws docs/demo.svg: what `gradellm demo` prints, as a terminal would show it. Run by `make picture`."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 92
PICTURE = Path(__file__).with_name("demo.svg")


def main() -> None:
    """Play the demo and write the picture."""
    played = subprocess.run(
        [sys.executable, "-m", "gradellm", "demo", "--color", "always"],
        env={**os.environ, "COLUMNS": str(COLUMNS), "COLORTERM": "truecolor"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS + 2, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(played.rstrip()))
    console.save_svg(str(PICTURE), title="gradellm demo", theme=MONOKAI)
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
