"""Parameters per cell over those of the traditional cell with as many hidden channels, counted from the modules.

The paper counts the weights of the cell alone: 33, 22, 17, 13 % (minGRU over GRU) and 38, 25, 19, 15 % (minLSTM over
LSTM) at expansion 1 to 4. The table also has the ratios with biases, and with the down-projection that a block needs at
expansion above 1.
"""

import itertools

from lm.bench import measure, models, options
from lm.bench.measure import RefusedError, Row
from lm.mixers import Mixer
from lm.report.format import number

PAIRS = (("mingru", "gru", (33, 22, 17, 13)), ("minlstm", "lstm", (38, 25, 19, 15)))
WAYS = {
    "weights": (False, False),
    "+ biases": (True, False),
    "+ down-projection": (False, True),
    "+ both": (True, True),
}
"""What to count besides the cell's weights: its biases, the down-projection."""


def count(mixer: Mixer, biases: bool, down: bool) -> int:
    """Parameters of a mixer, with or without its biases and its down-projection."""
    return sum(
        p.numel()
        for name, p in mixer.named_parameters()
        if (biases or p.dim() >= 2) and (down or not name.startswith("down."))
    )


def compare(name: str, baseline: str, expansion: int, width: int) -> dict[str, tuple[int, int]]:
    """Both counts, in each way of counting. Raises RefusedError if the cells differ in size."""
    ours, theirs = (
        models.make_mixer(mixer, width, expansion=float(expansion), convolution=0) for mixer in (name, baseline)
    )
    states = [mixer.init_state(1)[0].shape for mixer in (ours, theirs)]
    if states[0] != states[1]:
        raise RefusedError(f"differs: states {tuple(states[0])} and {tuple(states[1])}")
    return {way: (count(ours, *counted), count(theirs, *counted)) for way, counted in WAYS.items()}


def run(arguments: options.Parameters) -> Row:
    """All pairs at all expansions."""
    print(f"Parameters over those of the traditional cell, width {arguments.width}")
    rows = []
    for (name, baseline, paper), expansion in itertools.product(PAIRS, arguments.expansions):
        row: Row = {"name": name, "baseline": baseline, "expansion": expansion, "width": arguments.width}
        row["paper"] = paper[expansion - 1] / 100 if expansion <= len(paper) else None
        try:
            row["counts"] = compare(name, baseline, expansion, arguments.width)
        except RefusedError as error:
            row["skipped"] = str(error)
        rows.append(row)
    header = ("", "expansion", "paper", *WAYS, "weights", "of")
    titled = [{**row, "name": f"{row['name']} / {row['baseline']}"} for row in rows]
    measure.print_table(header, titled, table_row)
    return {"results": rows}


def table_row(row: Row) -> tuple[str, ...]:
    """The cells of a pair's row."""
    ratios = (f"{100 * ours / theirs:.1f} %" for ours, theirs in row["counts"].values())
    ours, theirs = row["counts"]["weights"]
    return str(row["expansion"]), number(row["paper"], ".0%"), *ratios, f"{ours:,}", f"{theirs:,}"
