"""Sliding windows over volumes larger than a network's patch, in little memory.

``placement`` says where windows lie and how much each counts, ``run`` carries a volume through a
network window by window, ``sinks`` turn finished parts into labels, ``resampling`` changes grids.
Importing the package imports no torch; ``run`` and ``sinks`` do.
"""
