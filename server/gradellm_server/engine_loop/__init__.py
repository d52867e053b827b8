"""The engine loop: the thread that runs the model, its queue, and the delivery of responses."""
