"""How a group of runs is drawn on the page and in pictures: a colour, a line style and a marker.

The colours are Okabe and Ito's for colour-blind readers, without their yellow, which is hard to see on white; those for
a dark background are lighter. With 7 colours and 5 line styles, 35 groups look different.
"""

LIGHT = ("#0072B2", "#D55E00", "#009E73", "#B5548F", "#C98300", "#3B9BD6", "#4D4D4D")
DARK = ("#4DA8E8", "#F58A42", "#2CC59B", "#E59BC6", "#F0B53C", "#A4DBFA", "#D9D9D9")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 3), (1.3, 2.2), (6, 2.5, 1.3, 2.5), (9, 3))
"""Lengths of dashes and gaps, in widths of the line; none for a solid line."""
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
