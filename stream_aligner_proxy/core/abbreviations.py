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
    mr mrs ms messrs mme mmes mlle mlles mgr dr dres drs prof profs rev fr. hon gov gen col lt
    capt cpt cmdr maj sgt cpl pvt adm sen rep pres supt insp det msgr esq mx sir.
    e.g i.e eg ie viz cf vs v approx ca resp incl excl esp c.f cp
    z.b u.a.m d.h i.d.r z.t o.g u.ä bzw evtl ggf vgl sog bspw bzgl inkl exkl insb insbes zzgl abzgl
    ing dipl fam hr hrn st.r geb gest verh bes ehem allg eigtl ev kath röm dt frz engl lat griech
    c.-à-d p.ex par.ex env dir ste ets cie.
    sr sra srta sres dn dña don. excmo excma lic ud uds vd vds p.ej pdo fdo dra drs hno hnos gral
    dott sig sigg sig.ra avv ing arch dottssa ecc. p.es
    exmo exma
    dhr mevr mw drs bijv d.w.z o.a
    św. ul np tzn tj prof. gł
    डॉ प्रो श्री
    г ул тов гр др. проф акад им т.е т.к т.н см ср напр
""")
_NUMBERS = _words("""
    no nos nr nrs num núm n° nº p pp pg pgs pág págs pag fig figs fl vol vols ch chap sec sect sek
    art arts eq eqs eqn ex exs ref refs tab tbl par para abs abb bd kap ziff lfd ed. vers ver ser
    bk op ps lib cap caps tel tél teléf hs hrsg § item cat anm aufl ausg c s
    рис стр гл п
""")
_NAMES = _words("""
    co corp inc ltd llc plc cie bros mfg intl assn assoc univ dept dist natl govt
    jr snr hijo st sta sto mt mts ft ave av avda blvd rd ln hwy pl sq apt ste rte pkwy
    ph.d b.a m.a b.sc m.sc m.d d.d.s ll.b ll.m d.phil
    jan feb febr mär apr jun jul aug sept sep okt oct nov dez dec déc janv févr avr juil
    ene abr ago dic lun mié jue vie sáb mo. mon tue tues wed thu thur thurs fri sat. sun.
    str pl. strasse bldg int dépt prov mun est calif ala ariz ark colo conn del. fla ill. ind. kan ky
    md mass mich minn miss. mo mont neb nev okla ore pa tenn tex vt va wash wis wyo
    mio mrd tsd mill mln mia tys min max std sek stk tgl
    chr orig pseud publ repr trans ann auth
""")
_LISTS = _words("""
    etc etcetera usw usf uvm u.v.m u.s.w u.s.f u.a o.ä u.ä.m ff ecc al ibid op.cit ss
    m.fl osv itd itp т.д т.п др
""")
_BY_WORD: Final[dict[str, int]] = {
    **dict.fromkeys(_LISTS, LIST),
    **dict.fromkeys(_NAMES, NAME),
    **dict.fromkeys(_NUMBERS, NUMBER),
    **dict.fromkeys(_TITLES, TITLE),
}
# Ordinary words when written small ("the sun.", "no.", "I ate a fig."): only with a capital,
# or not at all for the day and month names that are whole words.
_CAPITAL_ONLY: Final = _words("""
    mar sun sat mon fri wed jan jun jul dec col gen rep hon lic maj det miss art ill
    mass wash mont ore pa ala mo md va ky max min pres mt st
""")
_CAPITAL_NAMES: Final = _words("mar sun sat ill miss ind del")

# Words with a capital that commonly open a sentence and are not the second half of a name.
STARTERS: Final = _words("""
    The This That These Those There Then Thus Therefore They Their Theirs Them Though Through To
    Today Tomorrow Yesterday Two Three It Its It's I'm I've I'll He He's She She's Her His We We're
    Our You Your You're My What When Where Which While Who Whose Why How However Here Hence If In
    Into Instead Indeed Is Are Was Were Were Do Does Did Don't Have Has Had Can Could Would Should
    Must And But Or So Nor Yet For From Because Before After Although As At By Both Each Every Even
    Finally First Further Furthermore Given Last Later Let Let's Like Many Meanwhile More Moreover
    Most Much My Neither Next No None Not Nothing Now Of On Once One Only Other Others Otherwise
    Over Perhaps Please Since Some Someone Something Sometimes Soon Still Such Until Under Unlike
    Upon Using With Within Without Yes All Also Another Any Anyone Among Additionally Assuming
    Another Nevertheless Note Second Similarly Simply Sure
    Der Die Das Den Dem Des Ein Eine Einen Einem Einer Er Sie Es Wir Ihr Ihre Ich Und Aber Oder Denn
    Wenn Weil Als Auch Auf Aus Bei Beim Bis Da Dabei Daher Damit Danach Dann Dazu Dies Diese Dieser
    Dieses Doch Durch Für Gegen Hier Im Immer In Ist Jedoch Man Mit Nach Nicht Noch Nun Nur Ob Seit
    Sein Seine So Somit Um Unter Viele Vom Von Vor Während War Was Wer Wie Wo Zu Zum Zur Zwar
    Le La Les Un Une Des Du Il Elle Ils Elles On Nous Vous Je Ce Cet Cette Ces Cela Son Sa Ses Dans
    En Au Aux Et Mais Ou Donc Or Ni Car Pour Par Sur Sous Avec Sans Après Avant Depuis Puis Alors
    Ainsi Aussi Comme Quand Lorsque Lors Si Selon Cependant Toutefois Leur Leurs Notre
    El Los Las Una Unos Unas Él Ella Ellos Ellas Este Esta Esto Estos Estas Ese Esa Eso Su Sus Se
    Con Del Desde Después Antes Durante Entre Hasta Hay Más Muchos Muy Para Pero Por Porque Que
    Según Sin Sobre También Tras Y Ya Yo Como Cuando Donde Al Aunque Así Lo No Nos Tal Todo Todos
""")
# Starters that are also a part of names or a roman/letter label, unsafe after an initial.
NAME_PARTICLES: Final = _words(
    "Le La Les Des Du Del Der Den Das El Los Las Van Von Vom Al Di Da De"
)

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
    """The class of ``word`` (without its last dot), or 0 for an ordinary word."""
    low = word.lower()
    found = _BY_WORD.get(low, 0)
    if found and low in _CAPITAL_ONLY and word == low:
        return 0
    if not found:
        if low in _CAPITAL_NAMES and word != low:
            return NAME
        if "-" in low:  # "Dipl.-Ing.", "Oberst-Lt."
            found = _BY_WORD.get(low.rsplit("-", 1)[1].lstrip("."), 0)
            return found if found == TITLE else 0
    return found
