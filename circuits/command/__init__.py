"""The command line: overrides, what reads them, help, and the config that they mean."""
