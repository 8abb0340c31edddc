"""Edits, one file each; see :mod:`circuits.interventions.edits.base`."""
