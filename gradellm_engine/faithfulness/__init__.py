"""How faithful attributions are: the arithmetic of the metrics, without a model.

Scores become probabilities of being kept (`retention.py`), draws become masks (`masks.py`), two next-token
distributions a distance and a metric (`hellinger.py`), metrics over a grid a curve and its area (`curves.py`), and
areas of many prompts a mean with its interval (`statistics.py`). Beside them are insertion and deletion
(`insertion_deletion.py`) and the agreement with human rationales (`rationale_agreement.py`). Vectors over tokens are
numpy, float64; distributions over the vocabulary are torch, float32 or better. U is the set of tokens that may be
perturbed, and also its size in shapes.
"""
