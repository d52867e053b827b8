"""The demo model that ships with gradellm: a small Llama, trained by this package on text that it generates.

This module holds the checkpoint's path and imports no torch.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"
