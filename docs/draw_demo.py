"""Draws docs/demo.svg: the answers of `gradellm demo`, as a terminal would show them. Run by `make picture`."""

import os
import re
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
    answers, _, _ = played.rstrip().rpartition("\n\n")  # without the commands to try next, which are wider
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=COLUMNS + 2, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(answers))
    drawn = console.export_svg(title="gradellm demo", theme=MONOKAI)
    # Without rich's @font-face rules, which name another host: the viewer's own monospace font is used.
    PICTURE.write_text(re.sub(r" *@font-face \{.*?\}\n", "", drawn, flags=re.DOTALL), encoding="utf-8")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    main()
