"""The options of `char-lm generate`."""

from dataclasses import dataclass, field
from typing import Annotated

from lm.config.fields import POSITIONAL, REPEATED, FreeText, Natural, Output, Range, Share
from lm.config.options import Weights


@dataclass
class GenerateOptions:
    """Continue a prompt with a trained model. The prompt and its continuation alone go to stdout."""

    run: Annotated[str, POSITIONAL] = ""
    """a run's name or folder, a checkpoint file, an exported folder, or hub:USER/NAME (default: the newest run; where
    there is none, the pretrained model)"""
    prompt: FreeText | None = None
    """text to continue; @FILE reads a file, - stdin (default: the start of a line)"""
    chars: Natural = 1000
    """characters to write; 0: until interrupted by Ctrl-C"""
    temperature: Annotated[float, Range(least=0)] = 0.8
    """below 1: safer, above 1: wilder, 0: always the likeliest"""
    top_k: Natural = 0
    """choose among the k likeliest characters only; 0: among all"""
    top_p: Annotated[float, Range(above=0, most=1, text="above 0 and at most 1")] = 1.0
    """choose among the fewest likeliest characters that together have this probability"""
    min_p: Share = 0.0
    """leave out characters that are less likely than this times the likeliest one"""
    samples: Annotated[int, Range(least=0, most=1_000_000)] | None = None
    """number of continuations; 0: only read the prompt, for --save_state (default: 1)"""
    seed: Annotated[int, Range(least=0, most=2**64 - 1, text="at least 0 and below 2^64")] | None = None
    """the same seed writes the same text (default: 0, or that of the loaded state)"""
    stop: Annotated[list[FreeText], REPEATED] = field(default_factory=list)
    """end before this text; may be given several times"""
    out: Output | None = None
    """write to this file instead of stdout"""
    json: bool = False
    """write JSON lines, one per sample (per 4,096 characters of a long one): sample, text, log_probabilities (natural
    logarithms of the model's own, unfiltered probabilities at temperature 1) and finish, which is length, stop or
    interrupted, or null where the sample goes on"""
    interactive: bool = False
    """type lines and read how they continue; /help lists the commands"""
    score: FreeText | None = None
    """instead of writing, print the loss per character of this text (@FILE, -)"""
    save_state: Output | None = None
    """save where the texts end, after what stopped them, to this file"""
    load_state: str | None = None
    """continue from a saved state; --prompt is then read in addition"""
    weights: Weights = "float32"
    """precision of the matrices; fewer bits are faster, but change the text a little"""
    runs: str = "runs"
    """folder of the run folders"""
