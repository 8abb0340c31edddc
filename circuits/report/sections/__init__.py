"""One module per artifact kind; each registers its section with `circuits.report.registry.section`."""
