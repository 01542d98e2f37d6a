"""The house style of figures, and `Picture`: a matplotlib figure that shows itself in a notebook.

No global setting of matplotlib is changed and pyplot is not used, so nothing has to be closed and no window opens.
Colours are Okabe and Ito's, which colour-blind readers can tell apart. The background is solid white, so dark pages
keep it readable. Letters are those of the font that comes with matplotlib: the same on every machine.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any, TypeVar

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image  # matplotlib brings it

# Okabe and Ito, "Color Universal Design" (2008), without their yellow, which is too pale for lines on white.
BLUE, ORANGE, GREEN, PINK, SKY, GOLD = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, SKY, GOLD, "#000000")
LINES = ("-", "--", "-.", ":")
GREY, PALE = "#595959", "#E6E6E6"
FONT = "DejaVu Sans"

STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 110,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": PALE,
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "font.size": 10,
    "font.family": [FONT],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}

Draw = TypeVar("Draw", bound=Callable[..., "Picture"])


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults and then the house style, whatever the reader has set, for the length of a `with`."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield


def styled(draw: Draw) -> Draw:
    """Decorator of a function that makes a picture: the house style holds while it draws."""

    @functools.wraps(draw)
    def drawn(*args: Any, **kwargs: Any) -> Picture:
        with style():
            return draw(*args, **kwargs)

    return drawn  # pyright: ignore[reportReturnType]  # the same signature, kept by wraps


class Picture(Figure):
    """A figure with a text for those who cannot see it. As the last line of a cell it shows itself."""

    alt: str = ""

    def png(self) -> bytes:
        """The picture as PNG bytes: the same bytes for the same data and versions."""
        with style():
            data = png_of(self)
        self.set_layout_engine("none")  # laid out; a second pass would shift things by a pixel
        return data

    def __repr__(self) -> str:
        return f"Picture: {self.alt or 'no description'}"

    __str__ = __repr__

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"image/png": self.png(), "text/plain": repr(self)}, {"image/png": {"alt": self.alt}}


def axes(
    alt: str, rows: int = 1, columns: int = 1, *, width: float = 7.0, height: float = 3.4, **options: Any
) -> tuple[Picture, Any]:
    """A picture and its axes (one, or an array of them), in inches. Call it inside a function marked `@styled`.

    `alt` says in one sentence what the picture shows; it is stored with the image and printed where images are not.
    `options` go to `Figure.subplots`: sharex, sharey, width_ratios, subplot_kw.
    """
    picture = Picture(figsize=(width, height), layout="constrained")
    picture.alt = alt
    return picture, picture.subplots(rows, columns, **options)


def png_of(figure: Figure) -> bytes:
    """Any matplotlib figure as PNG bytes with at most 256 colours: a third of the size, to keep notebooks small."""
    canvas, out = FigureCanvasAgg(figure), BytesIO()
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(out, "PNG")
    return out.getvalue()


def text_on(colour: str) -> str:
    """White or black, whichever is easier to read on a colour (WCAG 2, relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "white" if luminance < 0.179 else "black"


def label(text: str) -> str:
    """A text with every character that the figures' font lacks written as U+4F60, and spaces and line ends visible."""
    glyphs = _glyphs()
    marks = {" ": "␣", "\n": "⏎", "\t": "⇥"}
    shown = (marks.get(ch, ch) for ch in text)
    return "".join(
        ch if ord(ch) in glyphs and ch != "$" else "\\$" if ch == "$" else f"U+{ord(ch):04X}" for ch in shown
    )


@functools.cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())
