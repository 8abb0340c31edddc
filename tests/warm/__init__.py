"""Command lines in forked copies of a process that has already imported torch, transformers and hydra.

A fresh process spends 4-6 s on importing; hundreds of tests run the command line. A *template* process imports once and forks
for each request, so that what runs is the same program with the same arguments, environment, directory and standard streams, from
the same first line on. Whatever kills processes, looks at them from outside or changes what libraries read while they are imported
is run as a plain process (:meth:`conftest.Cli.start`).
"""
