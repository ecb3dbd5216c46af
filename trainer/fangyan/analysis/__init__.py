"""What a trained model does with which data, and whether another differs from it."""
