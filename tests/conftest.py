"""No test reaches a hub: what is not on this machine is an error."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
