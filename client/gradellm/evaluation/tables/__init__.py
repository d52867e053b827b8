"""Tables of evaluation runs."""
