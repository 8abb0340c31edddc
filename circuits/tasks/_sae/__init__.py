"""The work of ``task=sae``: train SAEs on one stream, measure them, publish them.

Several elements of a pack can be trained together: each is a *member* with its own context (directory, log, W&B run, leases), and
an SAE is named by (member, layer). `source` opens what they are trained on, `training` trains, `publish` measures and publishes.
"""

from circuits.tasks._sae.member import Member
from circuits.tasks._sae.training import make, make_joined, make_together

__all__ = ["Member", "make", "make_joined", "make_together"]
