"""After supervised training: pairs of corrections, the right one preferred to the model's own."""
