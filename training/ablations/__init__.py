"""What each choice of the recipe is worth, on the demo world: one run for each, all else equal."""
