"""Words that end in a dot without ending the sentence, for many languages at once.

Rule: one union of languages, so that no caller has to say which language a reply is in.
A word's class says what the dot after it may mean when the text goes on with an upper-case
letter or a digit (a lower-case letter always goes on):

- ``TITLE``: never ends a sentence (``Dr. Smith``, ``e.g. Paris``).
- ``NUMBER``: goes on before a digit or a single letter (``Fig. 3``, ``Nr. 5``), else ends.
- ``NAME``: ends only before a word that commonly starts a sentence (``Inc. The``).
- ``LIST``: ends before any upper-case word (``etc. The``).
"""

from __future__ import annotations

from typing import Final

TITLE: Final = 1
NUMBER: Final = 2
NAME: Final = 3
LIST: Final = 4


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Matched without regard to case; inner dots are kept ("z.b"), the last one is not.
_TITLES = _words("""
    mr mrs ms messrs mme mmes mlle mlles mgr dr dres drs prof profs rev fr hon gov gen col lt
    capt cpt cmdr maj sgt cpl pvt adm sen rep pres supt insp det msgr esq mx
    e.g i.e eg ie viz cf vs approx ca resp incl excl esp c.f p.s
    z.b u.a.m d.h i.d.r z.t o.g u.ä bzw evtl ggf vgl sog bspw bzgl inkl exkl insb insbes zzgl abzgl
    ing dipl fam hr hrn geb gest verh bes ehem allg eigtl ev kath röm dt frz engl lat griech
    c.-à-d p.ex par.ex env dir
    sr sra srta sres dn dña excmo excma lic ud uds vd vds p.ej pdo fdo dra dras hno hnos gral
    dott sig sigg avv arch dottssa p.es exmo exma dhr mevr mw bijv d.w.z o.a
    św ul tzn tj gł ул тов гр т.е т.к т.н см ср напр проф акад
    डॉ प्रो श्री
""")
_NUMBERS = _words("""
    no nos nr nrs num núm n° nº p pp pg pgs pág págs pag fig figs fl vol vols ch chap sec sect
    art arts eq eqs eqn ex exs ref refs tab tbl par para abs abb bd kap ziff lfd vers ver ser ext
    bk op ps lib cap caps tel tél teléf hs hrsg anm aufl ausg max min рис стр гл
""")
_NAMES = _words("""
    co corp inc ltd llc plc cie bros mfg intl assn assoc univ dept dist natl govt al
    jr snr st sta sto mt mts ft ave av avda blvd rd ln hwy pl sq apt ste rte pkwy
    ph.d b.sc m.sc ll.b ll.m d.phil
    jan feb febr mär apr jun jul aug sept sep okt oct nov dez dec déc janv févr avr juil
    ene abr dic mon tue tues wed thu thur thurs fri
    str bldg dépt prov mun est calif ala ariz ark colo conn fla ill ind kan miss
    md mass mich minn mo mont neb nev okla ore pa tenn tex vt va wash wis wyo
    mio mrd tsd mill mln mia tys std sek stk tgl chr orig publ repr
""")
_LISTS = _words("""
    etc etcetera usw usf uvm u.v.m u.s.w u.s.f u.a o.ä u.ä.m ff ecc ibid op.cit
    m.fl osv itd itp т.д т.п др
""")
_BY_WORD: Final[dict[str, int]] = {
    **dict.fromkeys(_LISTS, LIST),
    **dict.fromkeys(_NAMES, NAME),
    **dict.fromkeys(_NUMBERS, NUMBER),
    **dict.fromkeys(_TITLES, TITLE),
}
# Ordinary words when written small ("the sun.", "a rep."): abbreviations only with a capital.
_CAPITAL_ONLY: Final = _words("""
    apt arch ave bes col dec det dir env est fam fri gen hon ill ind jan jul jun lic maj md
    mia mio miss mo mon mont ms mt ore pa pres rep sen sept st sto va wash wed
""")

# Words with a capital that commonly open a sentence and are not the second half of a name.
STARTERS: Final = _words("""
    A The This That These Those There Then Thus Therefore They Their Theirs Them Though Through To
    Today Tomorrow Yesterday Two Three It Its It's He He's She She's Her His We We're We've We'll
    I I'm I've I'll I'd Our You Your You're You'll You've My What When Where Which While Who Whose
    Why How However Here Hence If In Into Instead Indeed Is Are Was Were Do Does Did Don't Have Has
    Had Can Could Would Should Must And But Or So Nor Yet For From Because Before After Although As
    At By Both Each Every Even Finally First Further Furthermore Given Last Later Let Let's Like
    Many Meanwhile More Moreover Most Much Neither Next No None Not Nothing Now Of On Once One Only
    Other Others Otherwise Over Perhaps Please Since Some Someone Something Sometimes Soon Still
    Such Until Under Unlike Upon Using With Within Without Yes All Also Another Any Anyone Among
    Additionally Assuming Nevertheless Note Second Similarly Simply Sure
    Der Die Das Den Dem Des Ein Eine Einen Einem Einer Er Sie Es Wir Ihr Ihre Ich Und Aber Oder Denn
    Wenn Weil Als Auch Auf Aus Bei Beim Bis Da Dabei Daher Damit Danach Dann Dazu Dies Diese Dieser
    Dieses Doch Durch Für Gegen Hier Im Immer Ist Jedoch Man Mit Nach Nicht Noch Nun Nur Ob Seit
    Sein Seine Somit Um Unter Viele Vom Von Vor Während War Was Wer Wie Wo Zu Zum Zur Zwar
    Le La Les Un Une Du Il Elle Ils Elles Nous Vous Je Ce Cet Cette Ces Cela Son Sa Ses Dans
    En Au Aux Et Mais Ou Donc Ni Car Pour Par Sur Sous Avec Sans Après Avant Depuis Puis Alors
    Ainsi Aussi Comme Quand Lorsque Lors Si Selon Cependant Toutefois Leur Leurs Notre
    El Los Las Una Unos Unas Él Ella Ellos Ellas Este Esta Esto Estos Estas Ese Esa Eso Su Sus Se
    Con Del Desde Después Antes Durante Entre Hasta Hay Más Muchos Muy Para Pero Porque Que
    Según Sin Sobre También Tras Y Ya Yo Cuando Donde Al Aunque Así Lo Nos Tal Todo Todos
    Um Uma Eu Ele Ela Eles Não Em Na Os As Isso Esse Essa Mas Gli Nel Per Non Che È Ma Questo Questa
    De Het Een Hij Zij Ze Ik Dat Dit Maar Deze
    Он Она Они Оно Это Эта Этот В Во На И Но Я Мы Вы Как Что По С К Для Если Когда Также Однако
""")
# Starters that are also particles in the middle of names, so no sign after an initial.
NAME_PARTICLES: Final = _words("Le La Les Des Du Del Der Den Das El Los Las Van Von Vom Al Da De")

# Labels: "Step 1. Do this" opens a sentence with its label.
LABELS: Final = _words("""
    step chapter section part question example problem exercise figure table case rule lemma
    theorem definition proposition note phase stage level tip day week option
    schritt kapitel teil frage beispiel aufgabe étape chapitre partie exemple
    paso capítulo parte ejemplo pregunta
""")

# A German, Danish or Czech ordinal goes on: "am 3. Oktober", "im 19. Jahrhundert".
ORDINAL_NOUNS: Final = _words("""
    Januar Jänner Februar Feber März April Mai Juni Juli August September Oktober November Dezember
    Jan Feb Mär Apr Jun Jul Aug Sep Sept Okt Nov Dez
    Jahrhundert Jahrhunderts Jahrhunderte Jahrhunderten Jh Jhd Jhdt Jahrtausend Platz Rang Mal
    Klasse Liga Spieltag Auflage Etage Stock Stockwerk Geburtstag Jahrestag Lebensjahr Semester Tag
    Runde Minute Bezirk Arrondissement Armee Division Infanterie Panzerdivision Dynastie Sinfonie
    Symphonie Kompanie Regiment Kongress Weltkrieg Weltkriegs Weltkrieges Staffel Folge Kapitel
    Grad Legislaturperiode Wahlperiode Bundestag Saison Sitzung Generation Etappe Satz Band
""")
ORDINAL_LEADS: Final = _words("""
    der die das dem den des am im zum zur vom bis ab seit und oder beim ein eine einen einem einer
    eines seine seinen seinem seiner ihre ihren ihrem ihrer sein ihr mein meine meinen jeder jede
    jedes jeden diese dieser diesen zwischen ins sowie
    Der Die Das Dem Den Des Am Im Zum Zur Vom Bis Ab Seit Ein Eine Beim Ins
""")


def classify(word: str) -> int:
    """The class of ``word`` (without its last dot), or 0 for an ordinary word.

    What is only shaped like an abbreviation (``U.S``, ``p.m``, the first half of ``EE. UU.``, the
    initials ``Th``) is a ``NAME``.
    """
    low = word.lower()
    kind = _BY_WORD.get(low, 0)
    if kind:
        return 0 if word == low and low in _CAPITAL_ONLY else kind
    if "." in word:
        parts = word.replace("-", "").split(".")
        return NAME if all(len(part) <= 2 and part.isalpha() for part in parts) else 0
    if "-" in low:  # "Dipl.-Ing.", "Oberst-Lt."
        return TITLE if _BY_WORD.get(low.rsplit("-", 1)[1]) == TITLE else 0
    if len(word) == 2 and word.isalpha() and word[0].isupper():
        pair = low[0] not in "aeiou" and low[1] not in "aeiouy" and word[1].islower()
        return NAME if pair or (word[0] == word[1] and word not in ("II", "XX")) else 0
    return 0
