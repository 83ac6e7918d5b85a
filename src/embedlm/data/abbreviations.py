"""Words with a full stop that ends no sentence: English, German, French, Spanish, some others.

All stand in small letters and without their last full stop. They are the frequent ones; a word
that many sentences end with (no, in, am) is none of them.
"""

from __future__ import annotations

__all__ = [
    "BEFORE_NUMBERS",
    "CONTINUED",
    "FIRST_WORDS",
    "LONGEST",
    "MONTHS",
    "RANKS",
    "TAILS",
    "TITLES",
    "UNENDING",
    "WHOLE",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


TITLES = _words(
    "dr mr mrs ms mx prof messrs hr hrn frl dipl ing mm mme mmes mlle mlles mgr sra srta sres sras "
    "dra dn dña ud uds profa sig dott"
)
"""Stand before a name, with a capital letter."""
RANKS = _words(
    "st mt ft sr fr rev hon gen col capt cpt cmdr lt sgt cpl pvt maj adm gov sen rep pres supt"
)
"""Stand before a name, too, and at times at the end of a sentence: She lives in Main St."""
UNENDING = _words(
    "e.g eg i.e ie cf vs v viz z.b d.h u.a v.a z.t u.u s.o s.u i.d.r o.ä u.ä d.i bzw vgl ggf sog "
    "evtl inkl exkl zzgl bspw c.-à-d p.ex p.ej ee a.k.a w.r.t"
)
"""More of the sentence always follows; z. B. with a blank is the same."""
BEFORE_NUMBERS = _words(
    "fig figs no nos nr vol vols pp p s approx ca eq eqs sec sect ch chap ref refs abb bd aufl "
    "kap art abs núm pág págs pag aprox tel est al "
    "jan feb mar apr jun jul aug sep sept oct nov dec mrz okt dez janv févr avr juil déc ene abr "
    "dic"
)
"""End no sentence before a number."""
_STATES = _words(
    "air ambassador army attorney bank bureau capitol census coast code congress constitution "
    "court customs defense department dollar dollars embassy federal fish food forest foreign "
    "general geological government highway house justice marine marines national naval navy open "
    "patent postal postmaster president representative route secretary senate senator space state "
    "steel supreme treasury virgin"
)
CONTINUED = {
    **dict.fromkeys(("u.s", "u.s.a", "u.k", "u.n", "e.u"), _STATES),
    "u.n": _words("charter general human secretary security"),
    "co": _words("kg inc ltd limited"),
    "m": _words("le de du des"),
    "n": _words("chr"),
}
"""Words before which an abbreviation ends no sentence, though they have a capital letter."""
WHOLE = _words("u.s u.s.a u.k u.n e.u d.c u.s.s.r a.m p.m b.c a.d b.c.e c.e m.d b.a m.a")
"""Are no initials of a name, and may end a sentence."""
MONTHS = _words(
    "januar jänner februar märz april mai juni juli august september oktober november dezember "
    "jan feb mrz apr jun jul aug sep sept okt nov dez jahrhundert jahrhunderts"
)
"""After a German ordinal, as in 3. Oktober."""
FIRST_WORDS = _words(
    "a after all also although an and another any are as at because before both but by can did do "
    "does during each even every finally first for from had has have he her here his how however i "
    "if in instead is it its later many more most my no nobody not now of on once one only or our "
    "she since so some such that the their them then there therefore these they this those though "
    "thus to was we were what when where whether which while who whose why with would yes yet you "
    "your der die das den dem des ein eine einer er sie es wir ich ihr man im am auf aber und oder "
    "dann denn doch wenn als wie wer wo warum dieser diese dieses damit danach so auch nach seit "
    "le les un une il elle ils elles nous vous on ce cette ces cela mais et ou où si puis dans "
    "pour en el los las una él ella ellos es esta este esto pero y o cuando como entonces"
)
"""Begin a sentence where a name would else go on: after a single letter, or a rank."""
_ALL = TITLES | RANKS | UNENDING | BEFORE_NUMBERS | CONTINUED.keys() | WHOLE
LONGEST = max(map(len, _ALL))
_LAST = {key[-3:] for key in _ALL}
TAILS = _LAST | {tail.capitalize() for tail in _LAST} | {tail.upper() for tail in _LAST}
"""Last three letters."""
