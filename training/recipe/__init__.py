"""From rows to an aligner's checkpoint: TRL, transformers, accelerate, DeepSpeed in one run.

`config` what a run is · `rows` reads and encodes data · `schedule` packs it, in an order that
depends on the seed alone · `estimate` says what it will take · `trainer` runs it · `keeping`
saves it.
"""
