"""What the scheduler decides by: durations of passes, and how many requests fit one."""
