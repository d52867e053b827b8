"""Cost of structured output: tokens a second beside unconstrained ones, and the first use of a schema."""
