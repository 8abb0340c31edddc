"""Parts of ``task=convert``: legacy configs with comments, what their fields mean here, the command lines that come of them."""
