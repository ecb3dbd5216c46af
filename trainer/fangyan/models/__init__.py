"""Transformers models: loading, packed batches, a head that computes its loss."""

import transformers

# Loading a model prints a progress bar and a table of keys; the run says what matters.
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
