"""The comparison: run folders -> tables, curves in the terminal, a picture, one self-contained HTML page.

    char-lm compare runs/* --html report.html

Reads files only, and needs no torch; nothing in a run folder is trusted.
"""
