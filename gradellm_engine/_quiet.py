"""Silences what imported libraries say of machines that are not there; to be imported before them.

Transformers imports torchao wherever it is installed, and torchao warns of every kernel that it has for another
processor, and of its own use of torch.
"""

import logging

for _name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(_name).setLevel(logging.ERROR)
