"""The tree itself as JSON: every message, every hole (mvspec/tree/document.schema.json)."""

from __future__ import annotations

from typing import ClassVar

from mvspec.errors import Diagnostic, Source, VerifyError
from mvspec.forms.recovery.edits import Code
from mvspec.forms.syntax import Syntax, tag_texts
from mvspec.tree.ir import Document, Message

JSON = "json"


class JsonForm:
    """JSON of a document; see `mvspec.forms.form.Form`."""

    syntax: ClassVar[Syntax] = Syntax(JSON, tags=tag_texts({}, ""), tagged=False, ordered=False)
    readable: ClassVar[bool] = True

    def parse(self, source: Source) -> Document:
        """Read a document.

        Raises:
            VerifyError: it is not JSON or breaks an invariant; the message says where.
        """
        return Document.from_json(source.text)

    def repair(self, source: Source) -> tuple[Document, tuple[Diagnostic, ...]]:
        """Read a document; any other text has no tree worth guessing, and is one diagnostic."""
        try:
            return self.parse(source), ()
        except VerifyError as error:
            code: Code = "not-a-document"
            end = len(source.text)
            return Document(), (source.diagnostic(0, code, str(error), end=end),)

    def render(self, document: Document | Message) -> str:
        """Write a document; a message alone becomes one."""
        if isinstance(document, Message):
            document = Document(messages=(document,))
        return document.to_json()


FORM = JsonForm()
