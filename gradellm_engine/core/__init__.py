"""Requests and what runs them: the scheduler, the sampler, and what a request gives back."""
