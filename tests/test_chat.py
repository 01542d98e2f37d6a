"""The page to talk to a model: an answer streams into it, an error costs nothing, a saved notebook has a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from minids.widgets import chat


def echo(messages: list[dict[str, str]]) -> Iterator[str]:
    if messages[-1]["content"] == "fail":
        raise OSError("the line is <cut>")
    yield from (f"{len(messages)}: ", "<b>", messages[-1]["content"].upper())


def test_an_answer_streams_into_the_page_and_the_conversation_goes_on() -> None:
    seen: list[str] = []

    def watched(messages: list[dict[str, str]]) -> Iterator[str]:
        for piece in echo(messages):
            yield piece
            seen.append(page._page.value)  # what the page shows once the piece is taken

    page = chat(watched, "hello")
    page._button.click()
    assert page.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "1: <b>HELLO"}]
    assert len(set(seen)) == 3 and "1: &lt;b&gt;" in seen[1] and "HELLO" not in seen[1]
    page.send("and?")
    assert page.messages[-1]["content"] == "3: <b>AND?" and len(page.messages) == 4
    assert page._field.value == "" and "3: &lt;b&gt;AND?" in page._page.value
    page._anew.click()
    assert page.messages == [] and "Nothing was said yet" in page._page.value and page._field.value == "hello"


def test_an_error_is_shown_and_the_conversation_stays_as_it_was() -> None:
    page = chat(echo)
    page.send(" ")
    assert page.messages == []
    page.send("one")
    page.send("fail")
    assert "No answer came. OSError: the line is &lt;cut&gt;" in page._page.value
    assert len(page.messages) == 2 and page._field.value == "fail" and page._button.disabled is False


def test_a_saved_page_leaves_a_sentence_that_does_not_depend_on_the_answer() -> None:
    page, other = chat(echo, "hello"), chat(echo, "hello")
    other.send()
    assert page._repr_mimebundle_()["text/plain"] == other._repr_mimebundle_()["text/plain"]
    assert "'hello'" in repr(page) and "application/vnd.jupyter.widget-view+json" in page._repr_mimebundle_()
