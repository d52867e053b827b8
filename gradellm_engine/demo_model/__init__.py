"""The demo model that ships with gradellm: a small Llama, trained by this package on text that this package writes.

Importing it costs nothing (no torch): it only says where the checkpoint lies.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
