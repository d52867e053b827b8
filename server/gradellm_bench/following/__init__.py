"""What it costs to follow another engine, and how its numbers are told from another model."""
