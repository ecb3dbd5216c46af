"""A local page for those who do not program: ``fangyan ui``."""
