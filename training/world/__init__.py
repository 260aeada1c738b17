"""The demo world: word problems and notes in which alignment can be measured. Stdlib only."""
