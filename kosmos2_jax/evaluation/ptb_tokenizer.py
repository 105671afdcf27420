"""The tokens that caption scores are counted on: Penn Treebank's rules in Python.

COCO's evaluation cuts captions with Stanford's PTBTokenizer of 2014 (CoreNLP 3.4.1, options
`-preserveLines -lowerCase`) and drops punctuation. That is a Java program, which
`coco_java.tokenize` runs; here are its rules for English, found by comparing outputs.
"""

from __future__ import annotations

import re
import unicodedata

# What COCO's evaluation drops: punctuation, but not brackets, which it looks for in upper case
# (-LRB-) after all has been put in lower case. Quotation marks and dashes are dropped in any form.
_DROPPED = frozenset((*".?!,:-;'`\"", "--", "''", "``", "&quot;", "&apos;")) | frozenset(
    "\u00ab\u00bb\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u2026\u2039\u203a"
)

# How the Java program writes tokens; parentheses also within smileys and telephone numbers.
_WRITTEN = {
    **{"{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-", "---": "--", "----": "--"},
    **{"\u00a2": "cents", "\u00a3": "#", "\u20ac": "$", "\u00a4": "$"},
    **{"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">"},
}
_WRITTEN_WITHIN = str.maketrans({"(": "-lrb-", ")": "-rrb-", "\u00ad": None})

# Marks beyond ASCII that stay; of others only symbols do.
_KEPT_MARKS = frozenset(
    "\u00a1\u00a7\u00b2\u00b3\u00b6\u00b7\u00b9\u00bf\u201a\u201e\u2020\u2021\u2022"
)

# Words that keep their full stop: in any case; with a capital; before a number.
_ABBREVIATIONS = (
    "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri|Ala|Ariz|Calif|"
    "Colo|Conn|Ct|Dak|Fla|Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn|Va|Vt|"
    "Wisc?|Wyo|Inc|Cos?|Corp|Pt[ye]s?|Ltd|Plc|Rt|Bancorp|Dept|Bhd|Assn|Univ|Intl|Sys|tel|est|ext|"
    "sq|Jr|Sr|Bros|Blvd|Rd|Esq|etc|al|seq|Mrs?|Ms|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|"
    "Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|Pres|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|"
    "Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|Invt|Elec|Natl|Mfg|Mtg|vs|Alex|Wm|"
    r"Jos|Cie|cf|Treas|bldg|(?:Ph|Ed)\.D|Ph"
)
_CAPITAL_ABBREVIATIONS = "Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
_NUMBER_ABBREVIATIONS = "ca|figs?|prop|nos?|art|pp|op"
# After a single letter these begin a new sentence.
_SENTENCE_STARTS = (
    "A|About|After|An|As|At|But|He|Her|Here|If|In|It|Many|More|Mr\\.|Ms\\.|Now|One|Other|Our|She|"
    "Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|Yet|You"
)

_LETTER = (
    r"(?:[^\W\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2099\u2150-\u218f]|[\u00ad\u0300-\u036f])"
)
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_PART = rf"(?:[dDoOlL]['\u2019`\u2018](?={_LETTER}|\d))?(?:{_LETTER}|\d)+"
_THING = rf"{_PART}(?:[-_\u2010\u2011]{_PART})*"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_TAIL = r"['\u2019](?i:[msd]|re|ve|ll)"  # of he's, they'll
_NOT = r"n['\u2019`\u2018]t"  # of don't
_NUMBER = r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"
_PHONE = (
    r"(?:\([0-9]{2,3}\) ?|(?:\+\+?)?(?:[0-9]{2,4}[- ])?[0-9]{2,4}[- ])[0-9]{3,4}[- ]?[0-9]{3,5}"
    r"|(?:(?:\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"
)
_TAG = (
    r"<(?:[!?][A-Za-z-][^>]*|/?[A-Za-z][A-Za-z0-9_:.-]*"
    r"(?: +[A-Za-z][A-Za-z0-9_:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"|[A-Za-z][A-Za-z0-9_:.-]*))?)*"
    r" */?) *>"
)
_URL_END = r"(?:/[^ \t\"<>|()]+[^ \t\"<>|.!?(){},-])?"

# The longest match wins, among equals the earlier rule. A token is the group, or else the whole
# match; what was matched beside it counts for the length and is cut again.
_RULES = tuple(
    re.compile(rule)
    for rule in (
        rf"((?i:can))(?i:not)(?!{_LETTER}|\d)",
        rf"((?i:gon|wan|got))(?i:na|ta)(?!{_LETTER}|\d)",
        rf"((?i:lem|gim))(?i:me)(?!{_LETTER}|\d)",
        r"(['\u2019](?i:t))(?i:is|was)(?![A-Za-z])",
        _TAG,
        r"&(?:amp|lt|gt|quot|apos|#\d+);",
        rf"({_WORD}){_TAIL}",
        rf"([A-Za-z]*[A-MO-Za-mo-z])(?i:{_NOT})",
        rf"({_WORD}\.)[,;:]",
        _WORD,
        r"(?i:['\u2019]n['\u2019]?|[ldj]['\u2019]|(?:dunkin|somethin|ol)['\u2019]|['\u2019]em|"
        r"['\u2019]till?|['\u2019]cause|['\u2019][2-9]0s|['\u2019]\d\d(?= |\Z)|"
        r"c['\u2019]mon|e['\u2019]er|s['\u2019]mores|li['\u2019]l|nat['\u2019]l|ev['\u2019]ry|nor['\u2019]easter)"
        rf"(?!{_LETTER})",
        rf"([ldjLDJ]['\u2019]|['\u2019]n['\u2019]){_LETTER}",
        rf"{_LETTER}+[aeiouyAEIOUY]['\u2019][aeiouA-Z]{_LETTER}*",
        rf"([yY]['\u2019]){_LETTER}",
        r"https?://[^ \t\"<>|()]+[^ \t\"<>|.!?(){},-]",
        rf"www\.(?:[^ \t\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_URL_END}",
        rf"(?:[^ \t\"`'<>|.!?(){{}}\[\],\-_$]+\.)+(?:com|net|org|edu){_URL_END}",
        r"<?[a-zA-Z0-9][^ \t\"<>|()]*@(?:[^ \t\"<>|().]+\.)*[^ \t\"<>|().]+>?",
        rf"@[a-zA-Z_]\w*|#{_LETTER}(?:{_LETTER}|\d)*",
        rf"{_TAIL}(?![A-Za-z])",
        rf"(?i:{_NOT})(?![A-Za-z])",
        _NUMBER,
        r"(?:\d{1,4}[- ])?\d{1,4}[/\u2044]\d{1,4}",
        rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}",
        r"[A-Z]*\$|#",
        rf"(?i:{_ABBREVIATIONS})\.",
        rf"(?:{_CAPITAL_ABBREVIATIONS}|{_CAPITAL_ABBREVIATIONS.upper()})\.",
        rf"((?i:{_NUMBER_ABBREVIATIONS})\.) ?\d",
        rf"([A-Za-z])\. +(?:{_SENTENCE_STARTS}) ",
        rf"{_INITIALS}\.?|[A-Za-z]\.",
        _PHONE,
        rf"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z0-9\u00ad]+|{_INITIALS}\.))+",
        _THING,
        r"[A-Z]+(?:[+&][A-Z]+)+",
        r"(?:[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]|[-^x=~<>']_[-^x=~<>'])(?![A-Za-z0-9])",
        r"[cC]\+\+|[cCfF]#",
        r"[?!]+|-+|_+|@+|#+|\*+|\.{3,5}|''|``|<<|>>",
        r"\S",
    )
)
_CONTRACTED = re.compile(rf"{_TAIL}|(?i:{_NOT})")
_LETTER_OR_DIGIT = re.compile(rf"{_LETTER}|\d")
_PLAIN_WORD = re.compile(r"[A-Za-z]+(?= |\Z)")
_CUT_WORDS = frozenset(("cannot", "gonna", "gotta", "wanna", "lemme", "gimme"))


def tokenize(caption: str) -> list[str]:
    """Returns the words of a caption as COCO's evaluation counts them.

    They are in lower case; punctuation and emoji are left out, brackets are "-lrb-" and "-rrb-".
    What the Java program writes with a space within, as "3 1/2", is more than one word here, as it
    is to CIDEr and BLEU.
    """
    text = " ".join(caption.replace("&nbsp;", " ").split())
    words: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == " ":
            place += 1
            continue
        token = _next_token(text, place)
        place += len(token)
        words += _written(token).split()
    return words


def _next_token(text: str, place: int) -> str:
    plain = _PLAIN_WORD.match(text, place)
    if plain is not None and plain.group().lower() not in _CUT_WORDS:
        return plain.group()
    matches = (match for rule in _RULES if (match := rule.match(text, place)))
    longest = max(matches, key=lambda match: match.end())
    return longest.group(longest.lastindex or 0)


def _written(token: str) -> str:
    """A token as the Java program writes it, "" for one that is left out."""
    token = _WRITTEN.get(token, token)
    if token in _DROPPED or not token.strip("."):
        return ""
    if len(token) == 1 and not token.isascii() and not _LETTER_OR_DIGIT.match(token):
        is_symbol = token <= "\uffff" and unicodedata.category(token)[0] == "S"
        return token if is_symbol or token in _KEPT_MARKS else ""
    if _CONTRACTED.fullmatch(token):
        token = re.sub("[\u2018\u2019`]", "'", token)
    return token.translate(_WRITTEN_WITHIN).lower()
