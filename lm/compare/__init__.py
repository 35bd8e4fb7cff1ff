"""The comparison: run folders -> a table, curves in the terminal, a picture, one self-contained HTML page.

    python -m lm.compare runs/* --html report.html

Reads files only: no torch, and nothing that a run folder holds is trusted.
"""
