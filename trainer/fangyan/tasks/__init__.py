"""What a model learns: labels, scores and how predictions are read off its logits."""
