"""Other people's algorithms that no package here offers, written anew to be measured beside ours."""
