"""A tag for every token: segmentation, parts of speech, entities, or any labels."""
