"""One thin module per task: declare the kind, require inputs, call the library, commit, measure, log.

Importing a module here costs no torch: libraries are imported inside functions. A task never imports a task.
"""
