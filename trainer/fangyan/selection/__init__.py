"""Which sentences are most worth labelling for a trained model, and labelling them: active learning."""
