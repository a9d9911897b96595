"""The command line: speaks to a person. Data on stdout, everything else on stderr.

Commands import what they need inside their functions, so that ``--help`` and shell completion answer at once.
"""
