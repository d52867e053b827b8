"""Heat maps of text on a terminal."""
