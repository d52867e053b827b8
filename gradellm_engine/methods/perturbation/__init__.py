"""Post-hoc methods that replace prompt tokens and score the completion again."""
