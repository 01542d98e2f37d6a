"""Pictures that move: `explore` puts sliders beside one, `LivePlot` redraws one in a loop; `TalkBox` and `chat` talk.

    explore(plot.cache_bytes, max_context=[1024, 8192, 131072])      # any function from values to a picture

    with LivePlot(plot.curve) as live:                               # while training
        for step in range(200):
            losses.append(...)
            live.update(losses)                                      # draws at most a few times a second

Both are thin shells: what is drawn is decided by a plain function of `plot`, which a test can call. The output that is
saved holds a PNG and one line of text beside the widget, so that GitHub, a printed page and a reader without a kernel
see the picture too. They draw into an `Image` and never print from a callback: what a callback prints has no cell to
appear in, and what it raises would be lost, so errors are shown below the controls.

Notebook: all of them.
"""

from __future__ import annotations

import html
import inspect
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import ipywidgets as w
from IPython.display import display
from matplotlib import pyplot
from matplotlib.figure import Figure
from traitlets import Unicode

from minids.plot.style import Picture, png_of

Drawing = Callable[..., "Figure | bytes"]
SLOW = 0.15  # seconds: a picture that takes longer is redrawn when the slider is let go, not while it is dragged


def explore(draw: Drawing, **controls: Any) -> Explorer:
    """The picture that `draw` makes, with a control for each of its arguments; it follows them.

    Args:
        draw: from the controls' values, by name, to a `Picture` (or matplotlib figure, or PNG bytes).
        controls: for each argument one of
            (low, high) or (low, high, step): a slider, of whole numbers when all are whole;
            [1024, 4096, 16384]: a slider over these numbers;  ["gqa", "mla"] or {"text": value}: a menu;
            True or False: a tick box;  any ipywidgets control, as it is.
            It starts at the default that `draw` has for the argument, if it has one, else at the first value.

    Raises: ValueError for a control of another kind. An error of `draw` at the starting values is raised as it is,
    later ones are shown below the controls.
    """
    return Explorer(draw, controls)


class TitledImage(w.Image):
    """An image whose `tooltip` is its description for a screen reader (the page has it as the image's title)."""

    # Lab 4 with ipywidgets 8.1 cannot show a tooltip of a widget that has no description, not even an empty one.
    description = Unicode("").tag(sync=True)


class Explorer(w.VBox):
    """Controls above a picture. Made by `explore`."""

    def __init__(self, draw: Drawing, controls: Mapping[str, Any]):
        defaults = {name: p.default for name, p in inspect.signature(draw).parameters.items()}
        self._draw = draw
        self._controls = {name: _control(name, spec, defaults.get(name)) for name, spec in controls.items()}
        self._image, self._trouble = TitledImage(format="png"), w.HTML()
        began = time.perf_counter()
        self._redraw()
        slow = time.perf_counter() - began > SLOW
        for control in self._controls.values():
            if slow and control.has_trait("continuous_update"):
                control.set_trait("continuous_update", False)
            control.observe(self._follow, names="value")
        rows = w.HBox(list(self._controls.values()), layout=w.Layout(flex_flow="row wrap"))
        super().__init__([rows, self._image, self._trouble])

    @property
    def values(self) -> dict[str, Any]:
        """What the controls stand at."""
        return {name: control.value for name, control in self._controls.items()}  # pyright: ignore

    def set(self, **values: Any) -> None:
        """Move controls from code, as a reader would by hand. The first error of `draw` is raised."""
        for name, value in values.items():
            self._controls[name].set_trait("value", value)
        self._redraw()

    def png(self) -> bytes:
        """The picture as it stands."""
        return bytes(self._image.value)

    def _redraw(self) -> None:
        data, alt = _rendered(self._draw(**self.values))
        self._image.value, self._image.tooltip, self._alt = data, alt, alt

    def _follow(self, change: Any) -> None:
        try:
            self._redraw()
            self._trouble.value = ""
        except Exception as error:  # nothing else shows an error from a callback to the reader
            text = html.escape(f"{type(error).__name__}: {error}")
            self._trouble.value = f'<p role="alert">These values cannot be drawn. {text}</p>'

    def __repr__(self) -> str:
        where = ", ".join(f"{name} = {_shown(control)}" for name, control in self._controls.items())
        return f"Picture with controls ({where}): {self._alt or 'no description'}"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return _with_picture(super()._repr_mimebundle_(**kwargs) or {}, self.png(), repr(self), self._alt)


class LivePlot:
    """A picture that is redrawn in place while a loop runs, and that stays as an ordinary picture afterwards.

    Args:
        draw: from what `update` is given to a `Picture` (or figure, or PNG bytes).
        every: seconds between two drawings, at least; drawing also never takes more than a sixth of the time.
    """

    def __init__(self, draw: Drawing, every: float = 0.3):
        self._draw, self._every = draw, every
        self._image, self._next, self._last = TitledImage(format="png"), 0.0, None

    def __enter__(self) -> LivePlot:
        display({**_bundle(self._image), "text/plain": ""}, raw=True)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Give the newest data. It is drawn when it is time to, and in any case at the end."""
        self._last = (args, kwargs)
        if time.perf_counter() >= self._next:
            self._paint()

    def _paint(self) -> str:
        began = time.perf_counter()
        args, kwargs = self._last or ((), {})
        data, alt = _rendered(self._draw(*args, **kwargs))
        self._image.value, self._image.tooltip = data, alt
        ended = time.perf_counter()
        self._next = ended + max(self._every, 5 * (ended - began))
        return alt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Swap the moving picture for the last one, as a PNG that is saved with the notebook."""
        if self._last is not None:
            alt = self._paint()
            data, extra = _with_picture({}, bytes(self._image.value), f"Picture: {alt or 'no description'}", alt)
            display(data, metadata=extra, raw=True)
        self._image.close()


class TalkBox(w.VBox):
    """A text field, a temperature, a button; what `write` answers appears below, piece by piece.

    Args:
        write: from (prompt, temperature, seed) to pieces of text. Each press gives the next seed, from 0.
        prompt: what the field holds at first.
    """

    def __init__(self, write: Callable[[str, float, int], Iterable[str]], prompt: str, temperature: float = 0.8):
        self._write, self._seed = write, 0
        wide, style = w.Layout(width="98%"), {"description_width": "7em"}
        self._prompt = w.Textarea(value=prompt, description="prompt", rows=4, layout=wide, style=style)
        self._temperature = w.FloatSlider(
            value=temperature, min=0, max=2, step=0.1, description="temperature", style=style
        )
        self._button = w.Button(description="Go on from here", button_style="primary", tooltip="let the model write")
        self._answer = w.Textarea(description="it writes", rows=9, placeholder="nothing yet", layout=wide, style=style)
        self._button.on_click(lambda _: self.press())
        super().__init__([self._prompt, w.HBox([self._temperature, self._button]), self._answer])

    @property
    def answer(self) -> str:
        """What stands in the lower field."""
        return self._answer.value

    def press(self) -> None:
        """Let it write once, as the button does. Errors are shown in the field: a callback's would be lost."""
        self._button.disabled, self._answer.value = True, ""
        try:
            for piece in self._write(self._prompt.value, self._temperature.value, self._seed):
                self._answer.value += piece
        except Exception as error:
            self._answer.value = f"It could not go on from this prompt. {type(error).__name__}: {error}"
        finally:
            self._button.disabled, self._seed = False, self._seed + 1

    def __repr__(self) -> str:
        start = f"prompt = {self._prompt.value!r}, temperature = {self._temperature.value:g}"
        return f"A field to write into, a button, and the model's answer ({start}). It works where the notebook runs."

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {**(super()._repr_mimebundle_(**kwargs) or {}), "text/plain": repr(self)}


def chat(answer: Callable[[list[dict[str, str]]], Iterable[str]], message: str = "") -> Chat:
    """A page to talk to a model, for instance over the HTTP API.

    Args:
        answer: from the messages so far, [{"role": "user", "content": ".."}, ..], to pieces of the assistant's next.
        message: what the field holds at first.
    """
    return Chat(answer, message)


class Chat(w.VBox):
    """A conversation, a field to write into, two buttons. Made by `chat`; `messages` is what was said."""

    def __init__(self, answer: Callable[[list[dict[str, str]]], Iterable[str]], message: str):
        self._ask, self._first, self.messages = answer, message, []
        self._page, wide = w.HTML(), w.Layout(width="98%")
        self._field = w.Text(value=message, placeholder="say something", description="you", layout=wide)
        self._button = w.Button(description="Send", button_style="primary", tooltip="send what the field holds")
        self._anew = w.Button(description="Begin anew", tooltip="forget what was said")
        self._button.on_click(lambda _: self.send())
        self._anew.on_click(lambda _: self.begin_anew())
        super().__init__([self._page, self._field, w.HBox([self._button, self._anew])])
        self._show()

    def send(self, text: str | None = None) -> None:
        """Say `text`, or what the field holds, as the button does. The answer appears piece by piece.

        After an error, which is shown, the conversation is as it was and the text is in the field again.
        """
        said = self._field.value if text is None else text
        if not said.strip():
            return
        asked, heard = [*self.messages, {"role": "user", "content": said}], ""
        self._button.disabled, self._field.value = True, ""
        try:
            for piece in self._ask(asked):
                heard += piece
                self._show([*asked, {"role": "assistant", "content": heard}])
            self.messages = [*asked, {"role": "assistant", "content": heard}]
            self._show()
        except Exception as error:  # nothing else shows an error from a callback to the reader
            self._field.value = said
            self._show(trouble=f"No answer came. {type(error).__name__}: {error}")
        finally:
            self._button.disabled = False

    def begin_anew(self) -> None:
        """Forget what was said."""
        self.messages, self._field.value = [], self._first
        self._show()

    def _show(self, messages: list[dict[str, str]] | None = None, trouble: str = "") -> None:
        shown = self.messages if messages is None else messages
        names = {"user": "you", "assistant": "model"}
        lines = [f"<p><b>{names[m['role']]}</b> {html.escape(m['content'])}</p>" for m in shown]
        alert = f'<p role="alert">{html.escape(trouble)}</p>' if trouble else ""
        said = "".join(lines) or "<p>Nothing was said yet.</p>"
        self._page.value = f'<div role="log" style="white-space: pre-wrap">{said}</div>{alert}'

    def __repr__(self) -> str:
        what = f"A page to talk to a model: a field (at first {self._first!r}), a button, what was said."
        return f"{what} It works where the notebook runs."

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        return {**(super()._repr_mimebundle_(**kwargs) or {}), "text/plain": repr(self)}


def _control(name: str, spec: Any, start: Any) -> w.Widget:
    """The control for one argument, from the short forms that `explore` takes."""
    words: dict[str, Any] = {"description": name.replace("_", " "), "style": {"description_width": "initial"}}
    if isinstance(spec, w.Widget):
        return spec
    if isinstance(spec, bool):
        return w.Checkbox(value=spec, **words)
    if isinstance(spec, Mapping):
        return w.Dropdown(options=list(spec.items()), value=_pick(start, list(spec.values())), **words)
    if isinstance(spec, list) and spec:
        kind = w.Dropdown if any(isinstance(value, str | bool) for value in spec) else w.SelectionSlider
        return kind(options=spec, value=_pick(start, spec), **words)
    if isinstance(spec, tuple) and len(spec) in (2, 3) and all(isinstance(v, int | float) for v in spec):
        return _slider(spec, start, words)
    raise ValueError(
        f"a control is (low, high), (low, high, step), a list, a dict, a bool or a widget; {name} is {spec!r}: use one"
    )


def _slider(spec: tuple[float, ...], start: Any, words: dict[str, Any]) -> w.Widget:
    low, high = spec[:2]
    value = start if isinstance(start, int | float) and low <= start <= high else low
    if all(isinstance(v, int) for v in (*spec, value)):
        return w.IntSlider(value=value, min=low, max=high, step=spec[2] if len(spec) == 3 else 1, **words)
    step = spec[2] if len(spec) == 3 else (high - low) / 100
    return w.FloatSlider(value=value, min=low, max=high, step=step, readout_format=".3g", **words)


def _shown(control: Any) -> str:
    value = getattr(control, "label", None) or control.value
    return f"{value:g}" if isinstance(value, float) else str(value)


def _pick(start: Any, values: list[Any]) -> Any:
    return start if start in values else values[0]


def _rendered(drawn: Figure | bytes) -> tuple[bytes, str]:
    """PNG bytes and description. A figure of pyplot's is closed, or the notebook would show it a second time."""
    if isinstance(drawn, bytes):
        return drawn, ""
    if isinstance(drawn, Picture):
        return drawn.png(), drawn.alt
    pyplot.close(drawn)
    return png_of(drawn), ""


def _bundle(widget: w.Widget) -> dict[str, Any]:
    return widget._repr_mimebundle_() or {}


def _with_picture(bundle: dict[str, Any], png: bytes, text: str, alt: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return {**bundle, "image/png": b64encode(png).decode("ascii"), "text/plain": text}, {"image/png": {"alt": alt}}
