"""Post-hoc methods that compare the model's outputs before and after a perturbation of the prompt."""
