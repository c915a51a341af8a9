"""Poisons in and out: the file formats of published attacks and benchmarks, read without trust in the files.

`formats` reads and writes trial folders, `importing` checks what was read against a data set, `setups` holds the lists
of trials that benchmarks publish.
"""
