"""The text of an answer while it is generated: each part as soon as no later token can change it."""

from collections.abc import Callable, Sequence

from tunesmith.inference.request import StopStrings
from tunesmith.tasks.base import Task

# A character of which the bytes so far are only the beginning is decoded to this one.
_INCOMPLETE = "\ufffd"


class TextStream:
    """Text that grows with the tokens of an answer. All parts together are the text of the whole answer.

    Kept back until it is certain: the bytes of an unfinished character, blanks at the end, which a chat answer loses,
    the text that the chat template puts before an answer, and the beginning of a stop string. The answer of a model
    with thoughts is kept back entirely, because only its end shows where the last thought ended.

    Args:
        decode: returns the text of ids; `Task.decode_answer`.
        stops: the text ends before the first stop string.
        lead: text that `decode` may remove from the beginning.
        is_whole: keep everything back until the answer is complete.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        stops: StopStrings | None = None,
        lead: str = "",
        is_whole: bool = False,
    ) -> None:
        self._decode, self._stops, self._lead, self._is_whole = decode, stops, lead.strip(), is_whole
        self._ids: list[int] = []
        self._sent = ""

    @classmethod
    def of_task(cls, task: Task, stops: StopStrings | None = None) -> "TextStream":
        """Return the stream of an answer as a task decodes it."""
        return cls(task.decode_answer, stops=stops, lead=task.answer_lead, is_whole=task.removes_thoughts)

    def feed(self, token: int) -> str:
        """Return the text that is certain since the last call; may be empty."""
        self._ids.append(token)
        if self._is_whole:
            return ""
        text = self._cut(self._decode(self._ids).rstrip(_INCOMPLETE).rstrip())
        if self._lead.startswith(text):
            return ""
        return self._new_part(text[: len(text) - self._start_of_stop(text)])

    def finish(self) -> str:
        """Return the rest of the text of the complete answer."""
        return self._new_part(self._cut(self._decode(self._ids)))

    def _new_part(self, text: str) -> str:
        # Some tokenizers change text that they have returned before, such as a space before a comma.
        if not text.startswith(self._sent):
            return ""
        part = text[len(self._sent) :]
        self._sent = text
        return part

    def _cut(self, text: str) -> str:
        return self._stops.cut(text) if self._stops else text

    def _start_of_stop(self, text: str) -> int:
        """Return the length of the longest end of the text with which a stop string begins."""
        stops = self._stops.texts if self._stops else ()
        longest = max((len(stop) - 1 for stop in stops), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        return next((n for n in lengths if any(stop.startswith(text[-n:]) for stop in stops)), 0)
