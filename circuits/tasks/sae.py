"""``task=sae``: a sparse autoencoder per layer, trained on activations straight from the model, measured on held-out text.

One forward pass serves all layers of the run. With ``sae.source=store`` training reads an ``activations`` artifact instead, and
the model serves only the measurement, on the same held-out text. The artifact's directory is itself a SAELens directory; beside
the weights it holds ``metrics.json`` (held-out), ``history.parquet`` (training curves) and the resolved config.
"""

from __future__ import annotations

from circuits.tasks._sae.kind import Sae

KIND = Sae()
run = KIND.run
