"""How fangyan is measured: what is timed, in which order, and what may be said of it."""
