"""Other people's algorithms that no package here offers, written here to be measured beside ours."""
