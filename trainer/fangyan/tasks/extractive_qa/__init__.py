"""The answer to a question: a span of its context, or none."""
