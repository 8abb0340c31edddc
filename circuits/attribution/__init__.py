"""Circuits: which parts of a model make a behaviour, and which of them read which.

A **writer** adds to the residual stream (the embedding, a head, an MLP); a **reader** takes from it (the query, key and value of a
head, an MLP's input, the logits); an **edge** is a writer that a reader can see. A **method** scores all edges at once, exact
patching says how far a score can be trusted, and a **circuit** is a set of edges that does the behaviour without the others.
"""
