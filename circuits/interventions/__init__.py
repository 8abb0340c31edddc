"""Interventions: what a model does when some of its activations are changed, measured by running it.

A **unit** is what is edited (a head, a group of heads, a position of a site, a neuron, SAE features), a **lens** shows a unit's
numbers inside a site's tensor, an **edit** says what takes their place, and the **engine** runs the passes: everything that an
edit cannot change is computed once, several units share a pass, and only the positions that are read meet the unembedding.
"""
