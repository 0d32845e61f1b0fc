"""The tokeniser of the COCO caption evaluation: Penn Treebank style, lower case, no punctuation.

That evaluation runs Stanford's PTBTokenizer 3.4.1 (Java) and drops a list of punctuation tokens.
The rules below give the same tokens for English captions. They also reproduce its oddities, so
that scores agree: brackets become `-lrb-` and are kept, as are `!!` and `?!`; abbreviations keep
their full stop; "cannot" becomes two words. There is one exception: in the original, the tokens of
a caption that ends in a single letter ("a sign that reads K.") depend on the next line of the
file.
"""

import re
from collections.abc import Iterable
from functools import cache

# The rule with the longest match wins, context included; of equally long ones, the first. Group 1
# is the token, the rest of a match is context. Whole words ignore case, character classes do not.
_NO_LETTER = r"[\d_²³¹¼-¾⁰-₉⅐-↋]"
_LETTER = rf"(?:(?!{_NO_LETTER})\w|[\u0300-\u036f\xad])"
_LETTER_OR_DIGIT = rf"(?:(?!{_NO_LETTER})\w|\d)"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_QUOTE = r"(?:['\x92’]|&apos;)"
_ANY_QUOTE = r"(?:['`\x91\x92‘’‛]|&apos;)"
_ENDING = rf"{_QUOTE}(?:[msdMSD]|(?i:re|ve|ll))"
_NOT = rf"(?i:n){_ANY_QUOTE}(?i:t)"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ACRONYM = (
    r"[A-Za-z](?:\.[A-Za-z])+|(?i:(?:Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(?:U\.K|"
    r"U\.S\.S\.R))"
)
_PART = rf"(?:[dDoOlL]{_ANY_QUOTE}{_LETTER_OR_DIGIT})?{_LETTER_OR_DIGIT}+"
_HYPHENED = (
    rf"{_LETTER_OR_DIGIT}(?:{_LETTER_OR_DIGIT}|[.,])*(?:-(?:(?:{_ACRONYM})\.|"
    rf"{_LETTER_OR_DIGIT}+(?:\.\d+)?))+"
)
_PARTS = rf"{_PART}(?:[-_֊‐‑]{_PART})*"
_SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
_SHORT = (
    r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu|Thurs|Fri|Ala|Ariz|"
    r"Calif|Colo|Conn|Ct|Dak|Fla|"
    r"Ga|Ind|Kans?|Ky|Md|Mich|Minn|Mo|Mont|Neb|Nev|Okla|Penn|Tenn|Va|Vt|Wisc?|Wyo|Inc|Cos?|"
    r"Corp|Pp?t[ye]s?|Ltd|Plc|Rt|"
    r"Bancorp|Bhd|Assn|Univ|Intl|Sys|tel|est|ext|sq|Jr|Bros|Ed\.D|Ph\.D|Esq|etc|al|seq|"
    r"Bldg|Mr|Mrs|Ms|Mx|Drs?|Profs?|"
    r"Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?|Ave|"
    r"Pres|Lieut|Hon|Brig|Co?mdr|Pfc|"
    r"Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc|Sr|vs|v|Alex|Wm|"
    r"Jos|Cie|a\.k\.a|cf|TREAS|Ph|"
    r"Invt|Elec|Natl|Mtg|Mfg|Dept|Blvd|Rd|[A-Za-z]|(?-i:Az|Ark|Del|Ill|La|Mass|Miss|Ore|Pa|"
    r"Tex|Wash)"
)
_BEFORE_NUMBER = r"(?i:ca|figs?|prop|nos?|sect?s?|arts?|paras?|bldg|pp|op|approx|rs)|P[tT]"
_SENTENCE_STARTS = (
    r"About|According|Additionally|After|An|A|As|At|But|Did|During|Earlier|He|Her|Here|How|"
    r"However|If|In|It|Last|Many|"
    r"More|Mr\.|Ms\.|Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|"
    r"There|These|They|This|We|When|"
    r"While|What|Who|Why|Yet|You"
)
_URL_END = r"""[^ \t\n\f\r"<>|.!?(){},-]"""

_RULES = (
    r"((?i:can))(?i:not)",
    r"((?i:gon|wan))(?i:na)",
    r"((?i:got))(?i:ta)",
    r"((?i:gim|lem))(?i:me)",
    rf"({_QUOTE}(?i:t))(?i:is|was)",
    rf"(<(?:[!?][A-Za-z-][^>]*|/?{_NAME}(?: +{_NAME}(?: *= *(?:'[^']*'|\"[^\"]*\"|{_NAME}))"
    rf"?)* */?) *>)",
    r"(?P<drop>&(?:MD|mdash|ndash|nbsp);)",
    rf"({_WORD}){_ENDING}",  # it's
    rf"([A-Za-z\xad]*[A-MO-Za-mo-z]\xad*){_NOT}",  # isn't
    rf"({_WORD})",
    rf"({_QUOTE}(?i:n){_QUOTE}?|[lLdDjJ]{_QUOTE}|(?i:Dunkin|somethin|ol){_QUOTE}|{_QUOTE}(?"
    rf"i:em|till?|cause))",
    rf"([A-HJ-XZn]{_ANY_QUOTE}{_LETTER}{{2,}}|{_LETTER}+[aeiouyAEIOUY]"
    rf"{_ANY_QUOTE}[aeiouA-Z]{_LETTER}*)",
    rf"({_QUOTE}[2-9]0(?i:s)|(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l))",
    rf"((?i:y){_QUOTE}){_LETTER}",
    rf"""((?i:https?)://[^ \t\n\f\r"<>|()]+{_URL_END})""",
    rf"""((?i:www\.)(?:[^ \t\n\f\r"<>|.!?()\{{\}},]+\.)+[a-zA-Z]{{2,4}}(?"""
    rf""":/[^ \t\n\f\r"<>|()]+{_URL_END})?)""",
    rf"""((?:[^ \t\n\f\r"`'<>|.!?(){{}},-_$]+\.)+(?i:com|net|org|edu)(?:/[^ \t\n\f\r"<>|"""
    rf"""()]+{_URL_END})?)""",
    r"""(<?[a-zA-Z0-9][^ \t\n"<>|(){}\xa0]*@(?:[^ \t\n"<>|(){}.\xa0]+\.)*[^ \t\n"<>|()"""
    r"""{}.\xa0]+>?)""",
    rf"(@[a-zA-Z_][a-zA-Z_0-9]*|#{_LETTER}+|[cfCF]#)",
    rf"({_ENDING}|{_NOT})[^A-Za-z]",
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"([-+]?{_NUMBER})",
    r"((?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4})",  # 3 1/2
    rf"((?i:-[RL][RCS]B-|C\.D\.s|pro-|anti-|S(?:&|&amp;)P-500|S(?:&|&amp;)Ls|Cap{_QUOTE}n|"
    rf"c{_QUOTE}est))",
    rf"({_SLASHED}(?:\\?/{_SLASHED}){{1,2}})",
    r"([A-Z]*\$)",
    rf"([A-Za-z])\. +(?=[A-Z])(?i:{_SENTENCE_STARTS})[ ?!]",  # plan A. The
    # in Java only where the next line starts with "A", "The", ..., as most captions do
    r"([A-Za-z])\. *\n",
    rf"((?:{_BEFORE_NUMBER})\.)[ \t\xa0]?\d",
    rf"((?:{_ACRONYM}|(?i:{_SHORT}))\.)",
    rf"({_ACRONYM})[ \t\xa0\n]",
    rf"({_QUOTE}[0-9][0-9])[ \t\xa0\n]",  # '05
    rf"((?:{_WORD}|{_HYPHENED}|{_PARTS})\.)[,;:、]",
    r"((?:\(\d{2,3}\)[ \xa0]?|(?:\+\+?)?(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]"
    r"?\d{3,5})",
    r"((?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})",
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])[^A-Za-z0-9]",  # :)
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\))",  # (^_^)
    r"(?P<drop>-{3,4}|\.{3,5}|''|[`‘’‚‛“”„‟‹›«»\x91-\x94]{1,2})",
    r"(-+|@+|#+|_+|\*+|(?:\\\*)+|[?!]+)",
    rf"({_HYPHENED})",
    rf"({_PARTS})",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",  # AT&T
    r"(?P<drop>')[A-Za-z][^ \t\n\xa0]",
    rf"({_ENDING})",
    r"(&(?:amp|lt|gt);)",
    r"(?P<drop>&(?:quot|apos);)",
    r"""([^\s\w"“”„‟«»‘’‚‛`'‹›\x91-\x97–—―…\ue000-\uf8ff\ufff0-\U0010ffff])""",
    r"([²³¹⁰-₉¼-¾⅐-↋])",
    r"(?P<drop>[\s\S])",  # spaces, quotes, what cannot be a token
)
_CLITIC = re.compile(rf"{_ENDING}|{_NOT}")
_PLAIN = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|gimme|lemme)\b)([A-Za-z]{2,})[,;:!?]?")
# Numbers and mark-up may contain spaces, and the tokens of "A." depend on what follows.
_NEEDS_NEIGHBOURS = re.compile(r"[\d<]|(?<![A-Za-z])[A-Za-z]\.$")
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""]
)
_BRACKETS = {"{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-"}
_WRITTEN = str.maketrans(
    dict(
        zip(
            "()\xa0 ¢£€¤¼½¾",
            ["-lrb-", "-rrb-", *"\xa0\xa0", "cents", *"#$$", "1/4", "1/2", "3/4"],
            strict=True,
        )
    )
)


@cache
def _compiled() -> list[re.Pattern[str]]:
    return [re.compile(rule) for rule in _RULES]  # takes 20 ms, so not at import


def tokenise(captions: Iterable[str]) -> list[str]:
    """Each caption's tokens, joined by spaces ("1 1/2" is one token with a no-break space)."""
    # From text between spaces to its tokens; None if they depend on the text around it.
    known: dict[str, str | None] = {}
    tokens = []
    for caption in captions:
        chunks = caption.split()
        for chunk in chunks:
            if chunk not in known:
                known[chunk] = None if _NEEDS_NEIGHBOURS.search(chunk) else _tokens(chunk)
        pieces = [known[chunk] for chunk in chunks]
        whole = _tokens(" ".join(chunks)) if None in pieces else " ".join(filter(None, pieces))
        tokens.append(whole)
    return tokens


def _tokens(text: str) -> str:
    if plain := _PLAIN.fullmatch(text):
        return plain[1].lower()
    text += "\n"
    place, tokens = 0, []
    while place < len(text):
        match = max(
            (found for rule in _compiled() if (found := rule.match(text, place))),
            key=lambda found: found.end(),
        )
        place = match.end(1)
        if match.lastgroup != "drop" and (token := _written(match[1])) not in _PUNCTUATION:
            tokens.append(token)
    return " ".join(tokens)


def _written(token: str) -> str:
    if _CLITIC.fullmatch(token):
        return re.sub(_ANY_QUOTE, "'", token).lower()
    token = (
        token.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">").replace("\xad", "")
    )
    return _BRACKETS.get(token, token.translate(_WRITTEN).lower())
