"""The engine under load: many requests at once, and evaluations beside interactive streams."""
