"""How the demo model was made: its corpus, its training and its evaluation."""
