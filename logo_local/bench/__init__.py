"""`logo-local bench`: how fast mixtures are beside the base, measured on the engine itself.

measure.py   interleaved runs, medians, ratios
report.py    the result as tables and as a figure
"""
