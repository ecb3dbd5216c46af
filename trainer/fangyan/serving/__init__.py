"""A trained model as a small HTTP service: ``fangyan serve RUN``."""
