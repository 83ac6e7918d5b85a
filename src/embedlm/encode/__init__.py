"""From rendered texts to vectors: plan, pack, run, unpack."""
