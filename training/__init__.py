"""Training and merging: base model in, adapter out; adapter in, proven weights out."""
