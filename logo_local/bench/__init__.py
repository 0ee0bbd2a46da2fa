"""`logo-local bench`: the speed of mixtures relative to the base, measured on the engine.

measure.py   interleaved runs, medians, ratios
report.py    the result as tables and as a figure
"""
