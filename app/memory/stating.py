"""What a person states of themselves in a message, in English or Spanish: to be proposed as facts, never to be kept unasked.

A pure function over rules: no model reads the message, so nothing written in it can order anything. Rather silent than wrong:
what is quoted, code, a question, supposed, asked to be translated, or secret is no statement. It understands nothing; a person
reads each proposal before it is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from app.memory.stating_patterns import ENGLISH, SPANISH

MOST: Final = 5
"""Facts of one message."""
_LONGEST_MESSAGE: Final = 4000
"""A longer one is a document, with the words of others in it."""
_LONGEST: Final = 200
_SHORTEST: Final = 6
_TALK: Final = 400
"""A message so short that "remember that …" is meant for us, and not part of a task."""

_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]{1,400}`", re.DOTALL)
_QUOTED_LINE = re.compile(r"(?m)^[ \t]*(?:>|\||[-*•][ \t]|\d{1,3}[.)][ \t]|#|\t| {4}).*$")
_QUOTES = re.compile(
    r"\"[^\"\n]{0,2000}(?:\"|$)|“[^”\n]{0,2000}(?:”|$)|«[^»\n]{0,2000}(?:»|$)|‘[^’\n]{0,2000}’(?!\w)|"
    r"(?<!\w)'[^'\n]{1,2000}'(?!\w)",
    re.MULTILINE,
)
_GAP: Final = "\x00"
"""Stands where something was that is not the writer's own statement."""
_SENTENCES = re.compile(r"[^.!?…\n;¡¿]+[.!?…;]*|[¿¡][^?!\n]*[?!]*")
_CLAUSES = re.compile(
    r",? (?:and|but|so) (?=(?:i|i'm|i've|my)\b)|, (?=(?:i|i'm|i've|my) )"
    r"|,? (?:y|e|pero) (?=(?:yo|me|mi|mis|vivo|soy|trabajo|tengo|prefiero|estudio|odio|hablo|no|estoy|naci|nací)\b)"
    r"|, (?=(?:yo|me llamo|mi|vivo|soy|trabajo|tengo|prefiero|estudio|estoy) )",
    re.IGNORECASE,
)
_ASKING = re.compile(
    r"[,:;–—-] ?(?=(?:so )?(?:and )?(?:what|how|where|when|who|why|which|can|could|would|will|should|is|are|do|does|did|any|"
    r"que|qué|como|cómo|donde|dónde|cuando|cuándo|quien|quién|por que|por qué|cual|cuál|puedes|podrías|podrias|me puedes|"
    r"sabes|hay)\b)",
    re.IGNORECASE,
)
_CUT = re.compile(
    r",? (?:so (?:please|can|could|what|how|i need)|please|could you|can you|thanks|thank you|así que|asi que|por favor|"
    r"gracias|"
    r"puedes|podrías|what do you|help me|ayúdame|ayudame)\b.*$|\s*[:–—]\s.*$|,? (?:by the way|btw|por cierto|right|ok|okay)$",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(
    r"\b(?:if|unless|suppose|supposing|imagine|pretend|wish|hypothetically|assume|assuming|as though|let's say|for example|"
    r"for instance|"
    r"e\.g|would|could|might|maybe|perhaps|say that|said|says|told|tells|writes|wrote|used to|"
    r"si|supongamos|supon|imagina|imaginemos|imaginate|finge|fingir|ojala|quizas|quiza|tal vez|a lo mejor|como si|"
    r"por ejemplo|digamos|"
    r"dijo|dice|dicen que|decia|conto|escribio|seria|fuera|fuese|viviera|tuviera|en caso de|hipoteticamente)\b",
    re.IGNORECASE,
)
_TEXT_TASK = re.compile(
    r"\b(?:translat(?:e|ion)|proofread|paraphrase|rewrite|rephrase|summari[sz]e|correct (?:this|the|my|these)|fix (?:this|"
    r"the|my)|"
    r"grammar|classify|extract|role-?play|act as|pretend|imagine you|following (?:text|sentence|message|email|letter|story)|"
    r"lyrics|"
    r"traduce|traducir|traduccion|tradúce(?:me|lo)?|corrige|corregir|parafrasea|reescribe|reformula|resume|resumir|"
    r"clasifica|extrae|"
    r"actúa como|actua como|finge|imagina que|siguiente (?:texto|frase|mensaje|carta|correo)|gramática|letra de)\b",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:(?:hi|hello|hey|hiya|good (?:morning|afternoon|evening)|well|ok|okay|so|also|and|but|oh|actually|btw|by the way|"
    r"fyi|just so you know|"
    r"please note(?: that)?|for context|for your information|note that|you should know(?: that)?|as for me|to be honest|"
    r"honestly|personally|"
    r"keep in mind(?: that)?|hola|buenas|buenos dias|buenas tardes|buenas noches|oye|mira|bueno|pues|vale|ademas|tambien|"
    r"por cierto|"
    r"para que lo sepas|ten en cuenta que|y|pero|la verdad(?: es que)?|sinceramente|en realidad|claro|encantad[oa]|thanks|"
    r"thank you|gracias|"
    r"nice to meet you|mucho gusto|there|everyone|all)[ ,:!.-]+)+",
    re.IGNORECASE,
)
_REMEMBER = re.compile(
    r"^(?:please |can you |could you |por favor,? |puedes |podrias )?(?:remember|do ?n[o']t forget|don't forget|"
    r"never forget|memori[sz]e|"
    r"make a note|save|store|recuerda|acuerdate|no olvides|no te olvides|memoriza|apunta|anota|guarda|ten presente)"
    r"(?:(?: this| esto)?:| that| de que| que|(?= (?:my|mi|i)\b))[ ]*(?=\S)",
    re.IGNORECASE,
)
_STANDING = re.compile(
    r"^(?:my (?:full |first |last )?(?:name|nickname|pronouns)\b|i am called|i'm called|(?:please )?(?:you can |"
    r"just )?call me\b|"
    r"(?:please )?(?:always|never|from now on|going forward)\b|(?:please )?(?:answer|reply|respond|speak|talk)\b|"
    r"i prefer (?:short|brief|long|concise|detailed|simple|answers|replies|responses|formal|informal|you)|"
    r"(?:yo )?me llamo\b|mi (?:nombre|apodo)\b|(?:por favor,? )?(?:puedes llamarme|llamame)\b|(?:por favor,? )?(?:siempre|"
    r"nunca)\b|"
    r"(?:a partir de ahora|de ahora en adelante|desde ahora|en adelante)\b|"
    r"(?:por favor,? )?(?:responde|contesta|habla|respondeme|contestame|hablame|escribeme|tratame|tuteame)\b|"
    r"prefiero (?:respuestas|que me|las respuestas|explicaciones|un tono))",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"\b(?:pass ?words?|pass ?phrase|passcode|passwd|pins?|cvv|cvc|api[ _-]?keys?|access[ _-]?keys?|private keys?|secrets?|"
    r"tokens?|ssn|"
    r"social security|credit card|card number|debit card|bank account|account number|iban|routing number|passport|"
    r"seed phrase|otp|"
    r"contrasenas?|claves?|pin|secretos?|seguridad social|tarjeta|numero de cuenta|cuenta bancaria|pasaporte|dni|nie|nif|"
    r"curp)\b"
    r"|-----BEGIN|(?:\d[ ./-]?){9,}|\b(?=\w*\d)(?=\w*[A-Za-z])[\w-]{16,}\b|\b(?:sk|pk|ghp|apz|hf|xox[a-z])[-_]\w{8,}",
    re.IGNORECASE,
)


def stated(text: str) -> list[str]:
    """What the writer of ``text`` states of themselves, each as a sentence in their own words; at most five, none twice."""
    if len(text) > _LONGEST_MESSAGE:
        return []
    own = _own_words(text)
    found: dict[str, str] = {}
    for sentence in _sentences(own):
        for clause in _clauses(sentence):
            fact = _fact(clause, short=len(text) <= _TALK)
            if fact is not None:
                found.setdefault(_plain(fact).casefold(), fact)
    return list(found.values())[:MOST]


def is_standing(fact: str) -> bool:
    """Whether a fact matters whatever is asked: what somebody is called, how they want to be answered."""
    return _STANDING.match(_plain(fact)) is not None


def is_secret(text: str) -> bool:
    """Whether a text looks as if it held a password, a key, or the number of a card, an account or a document."""
    return _SECRET.search(_plain(text)) is not None


def _own_words(text: str) -> str:
    """``text`` without code and quotations, nor what comes behind a task over a text or a line that announces one."""
    text = unicodedata.normalize("NFC", text).replace("’", "'")
    for expression in (_CODE, _QUOTED_LINE, _QUOTES):
        text = expression.sub(_GAP, text)
    task = _TEXT_TASK.search(text)
    announced = re.search(r":[ \t]*(?:\n|$)", text)
    ends = [found.start() for found in (task, announced) if found is not None]
    # Without the sentence in which the task stands, too: it begins before the task is named.
    return text[: max(text.rfind(mark, 0, min(ends)) for mark in ".!?\n") + 1] if ends else text


def _sentences(text: str) -> Iterator[str]:
    """Sentences that state something. Of one that ends in a question, what stands before the question."""
    for found in _SENTENCES.finditer(text):
        sentence = found.group().strip()
        if sentence.startswith("¿"):
            continue
        if sentence.rstrip("!.…").endswith("?"):
            asking = _ASKING.search(sentence)
            if asking is None:
                continue
            sentence = sentence[: asking.start()]
        plain = _plain(sentence)
        if _GAP in sentence or (_SUPPOSED.search(plain) and not _REMEMBER.match(_LEAD.sub("", plain))):
            continue
        yield sentence


def _clauses(sentence: str) -> Iterator[str]:
    if _REMEMBER.match(_LEAD.sub("", _plain(sentence))):
        yield sentence
        return
    yield from _CLAUSES.split(sentence)


def _fact(clause: str, *, short: bool) -> str | None:
    """The statement that a clause makes, as a sentence, or None."""
    clause = clause.strip(" \t,;:.!…¡")
    plain = _plain(clause)
    clause = clause[_end(_LEAD.match(plain)) :]
    plain = _plain(clause)
    remember = _REMEMBER.match(plain)
    if remember is not None:
        clause, plain = clause[remember.end() :], plain[remember.end() :]
        if not short and not _states(plain):
            return None
    clause = _CUT.sub("", clause).strip(" ,;:.!…")
    plain = _plain(clause)
    if not _SHORTEST <= len(clause) <= _LONGEST or (remember is None and not _states(plain)) or is_secret(plain):
        return None
    return clause[0].upper() + clause[1:] + "."


def _states(plain: str) -> bool:
    return any(expression.match(plain) for expression in (*ENGLISH, *SPANISH))


def _end(match: re.Match[str] | None) -> int:
    return 0 if match is None else match.end()


def _plain(text: str) -> str:
    """``text`` without accents, character for character."""
    return "".join(unicodedata.normalize("NFD", char)[0] for char in text)
