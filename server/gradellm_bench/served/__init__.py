"""The engine under load: many requests at once, and evaluations during interactive streams."""
