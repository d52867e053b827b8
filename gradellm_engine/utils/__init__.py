"""Small helpers: random numbers, memory, threads, and warnings of libraries."""
