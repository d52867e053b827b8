"""Names of a question that no document has."""
