// Server-sent events over fetch (WHATWG HTML, section 9.2.6): text in, events out. Knows nothing of what they mean.

const MAX_PENDING = 4_000_000;

/** Turns pieces of text, cut anywhere, into `{event, data}` objects. */
export class SseParser {
  #rest = "";
  #event = "";
  #data = [];
  #started = false;

  /** Takes the next piece; returns the events that it completed. Throws RangeError on a line without end. */
  push(piece) {
    let text = this.#rest + piece;
    if (!this.#started && text.length > 0) {
      this.#started = true;
      if (text.charCodeAt(0) === 0xfeff) text = text.slice(1);
    }
    const events = [];
    let start = 0;
    for (;;) {
      const end = this.#lineEnd(text, start);
      if (end < 0) break;
      this.#line(text.slice(start, end), events);
      start = end + (text[end] === "\r" && text[end + 1] === "\n" ? 2 : 1);
    }
    this.#rest = text.slice(start);
    if (this.#rest.length > MAX_PENDING) throw new RangeError("event stream line too long");
    return events;
  }

  #lineEnd(text, start) {
    for (let i = start; i < text.length; i++) {
      if (text[i] === "\n") return i;
      // A carriage return at the very end may be half of a CRLF: wait for the next piece.
      if (text[i] === "\r") return i + 1 < text.length ? i : -1;
    }
    return -1;
  }

  #line(line, events) {
    if (line === "") {
      if (this.#data.length > 0) events.push({ event: this.#event || "message", data: this.#data.join("\n") });
      this.#event = "";
      this.#data = [];
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    let value = colon < 0 ? "" : line.slice(colon + 1);
    if (value.startsWith(" ")) value = value.slice(1);
    if (field === "event") this.#event = value;
    else if (field === "data") this.#data.push(value);
  }
}

/** Yields the events of a response body. Ends when the body ends; an unfinished event is dropped. */
export async function* readEvents(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  const parser = new SseParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    // Left early (stop button, error): tell the service, so that it stops working.
    reader.cancel().catch(() => undefined);
  }
}
