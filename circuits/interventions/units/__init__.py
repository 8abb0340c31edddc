"""Units and their lenses, one file each; see :mod:`circuits.interventions.units.base`."""
