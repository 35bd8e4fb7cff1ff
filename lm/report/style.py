"""How a group looks, in the page and in the picture: a colour, a line style and a marker, so that no two need colour.

The colours are Okabe and Ito's, safe for the colour-blind, without their yellow, which is lost on white; on a dark
ground they are lightened. Five dashes go round against seven colours: 35 looks before one returns.
"""

LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B5548F", "#C98300", "#3B9BD6", "#4D4D4D")


DARK = ("#4DA8E8", "#F58A42", "#2CC59B", "#E59BC6", "#F0B53C", "#A4DBFA", "#D9D9D9")


DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
"""Names that plotly knows."""


PATTERNS = {"solid": (), "dash": (5, 3), "dot": (1.3, 2.2), "dashdot": (6, 2.5, 1.3, 2.5), "longdash": (9, 3)}
"""The same in units of the line's width."""


SYMBOLS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "cross": "P",
    "x": "X",
    "triangle-down": "v",
    "star": "*",
}
"""Markers: plotly's name and matplotlib's."""
