"""The terminal side of ``aprendiz chat``: input with history, streamed answers, slash commands. Sends nothing itself.

What a model says is printed with its control characters escaped: an answer must not move the cursor or rename the window.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from app.cli.output import stderr_console, visible, visible_lines
from app.core.errors import AprendizError, Unauthenticated

if TYPE_CHECKING:
    from app.cli.conversation import Conversation

HELP = """\
  /good [why]     the last answer was good
  /bad [why]      the last answer was bad
  /fix            write the answer as it should have been (in $VISUAL or $EDITOR, or here)
  /model [name]   show the models, or ask another one from now on
  /new            start a new conversation
  /help           this text
  /quit           leave; so does Ctrl-D
Enter sends, Alt-Enter starts a new line, Ctrl-C stops an answer."""


class Terminal:
    """A conversation at a terminal. `run` returns when the person leaves."""

    def __init__(self, conversation: Conversation, address: str) -> None:
        self._conversation = conversation
        self._address = address
        self._console = stderr_console()
        self._prompt: PromptSession[str] = PromptSession(
            history=_history(), key_bindings=_bindings(), multiline=True, prompt_continuation="  ", enable_open_in_editor=False
        )
        self._commands = {
            "/good": self._good,
            "/bad": self._bad,
            "/fix": self._fix,
            "/model": self._model,
            "/new": self._new,
            "/help": self._help,
        }

    async def run(self) -> None:
        """Reads and answers until /quit or Ctrl-D. Raises Unauthenticated where the credential stops working."""
        self._note(f"Aprendiz at {self._address}. /help lists the commands; Ctrl-D leaves.")
        while True:
            try:
                text = (await self._prompt.prompt_async(HTML("<b>&gt;</b> "))).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text in ("/quit", "/exit"):
                return
            try:
                await self._take(text)
            except Unauthenticated:
                raise
            except AprendizError as error:
                self._note(visible(error.detail), style="red")

    async def _take(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        if not text:
            return
        if not name.startswith("/") or "/" in name[1:]:
            await self._ask(text)
        elif name in self._commands:
            await self._commands[name](rest.strip())
        else:
            self._note(f"There is no command {visible(name)}; /help lists them.", style="red")

    async def _ask(self, text: str) -> None:
        """Prints the answer as it comes; Ctrl-C closes the connection, which stops the model."""
        answer = asyncio.create_task(self._stream(text))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, answer.cancel)
        try:
            await answer
        except asyncio.CancelledError:
            if not answer.cancelled():
                raise
            self._note("\n(stopped)")
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _stream(self, text: str) -> None:
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(self._console.status("waiting for the first word", spinner="dots"))
            started = False
            async with contextlib.aclosing(self._conversation.ask(text)) as pieces:
                async for piece in pieces:
                    waiting.close()
                    # Leading line breaks of small models would tear a hole under the question.
                    shown = visible_lines(piece) if started else visible_lines(piece).lstrip("\n")
                    started = started or bool(shown)
                    sys.stdout.write(shown)
                    sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if (last := self._conversation.last) is not None:
            cut = ", cut at the longest length" if last.finish_reason == "length" else ""
            self._note(f"{visible(last.model)}, {last.tokens} tokens{cut}")
            for source in last.sources:
                self._note(visible(source))

    async def _good(self, comment: str) -> None:
        await self._conversation.rate("up", comment)
        self._note("Noted as good. Thank you.")

    async def _bad(self, comment: str) -> None:
        await self._conversation.rate("down", comment)
        self._note("Noted as bad. /fix lets you write what it should have said.")

    async def _fix(self, _: str) -> None:
        last = self._conversation.last
        if last is None:
            self._note("There is no answer to correct yet.", style="red")
            return
        better = (await self._edit(last.text.strip())).strip()
        if not better or better == last.text.strip():
            self._note("Nothing changed, so nothing was sent.")
            return
        await self._conversation.correct(better)
        self._note("Your correction is stored. Thank you.")

    async def _model(self, name: str) -> None:
        if name:
            self._conversation.model = None if name == "default" else name
            self._note(f"From now on: {visible(name)}.")
            return
        known = await self._conversation.models()
        for line in model_lines(known):
            self._note(line)

    async def _new(self, _: str) -> None:
        self._conversation.restart()
        self._note("A new conversation.")

    async def _help(self, _: str) -> None:
        self._note(HELP, style="")

    async def _edit(self, text: str) -> str:
        """``text`` as the person changes it; empty where they gave up."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if editor:
            return await _edit_in(shlex.split(editor), text)
        self._note("Change the answer and press Enter (Alt-Enter: new line, Ctrl-C: give up).")
        inline: PromptSession[str] = PromptSession(history=InMemoryHistory(), key_bindings=_bindings(), multiline=True)
        try:
            return await inline.prompt_async("", default=text)
        except (KeyboardInterrupt, EOFError):
            return ""

    def _note(self, text: str, *, style: str = "dim") -> None:
        self._console.print(text, style=style, markup=False)


def model_lines(known: object) -> list[str]:
    """``GET /model`` in a few lines for a person."""
    if not isinstance(known, dict):
        return [visible(known)]
    serving = f"{known.get('provider')}/{known.get('model')} serves ({known.get('state')}, on {known.get('device')})."
    names = ", ".join(str(name) for name in known.get("aliases", ()))
    return [visible(serving), visible(f"Names you can ask for: {names}.")]


async def _edit_in(editor: list[str], text: str) -> str:
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", prefix="aprendiz-fix-", suffix=".md") as file:  # mode 0600
        file.write(text)
        file.flush()
        try:
            process = await asyncio.create_subprocess_exec(*editor, file.name)
        except OSError as error:
            raise AprendizError(f"The editor {editor[0]!r} does not start: {error.strerror}. Set EDITOR.") from error
        return _read(file.name) if await process.wait() == 0 else ""


def _read(name: str) -> str:
    """Opened anew by name: many editors write a new file and rename it into place."""
    return Path(name).read_text(encoding="utf-8")


def _history() -> History:
    """Lines typed before, kept in the user's state folder with mode 0600; only in memory where that cannot be written."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(base) / "aprendiz" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
