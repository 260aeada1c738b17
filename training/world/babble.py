"""Text from outside the demo world, so that the aligner learns to leave what it does not know."""

from __future__ import annotations

import random

SYLLABLES = (
    "an", "be", "cor", "da", "el", "fi", "gra", "ho", "in", "ju", "ka", "lo", "mi", "ne", "or",
    "pa", "qui", "ra", "sta", "ti", "un", "ver", "we", "xi", "yo", "zu", "th", "ing", "er", "ly",
    "tion", "s", "ed", "ch", "sh", "oo", "ea", "ment", "ble", "ck",
)  # fmt: skip
_COMMON = (
    "the a of and to in is it that was for on are with as his they be at one have this from "
    "or had by hot but some what there we can out other were all your when up use word how "
    "said each she which do their time if will way about many then them would write like so "
    "these her long make thing see him two has look more day could go come did my sound no "
    "most number who over know water than call first people may down side been now find any "
    "new work part take get place made live where after back little only round man year came "
    "show every good me give our under name very through just form much great think say help "
    "low line before turn cause same mean differ move right boy old too does tell sentence "
    "set three want air well also play small end put home read hand port large spell add even "
    "land here must big high such follow act why ask men change went light kind off need "
    "house picture try us again animal point mother world near build self earth father head "
    "stand own page should country found answer school grow study still learn plant cover "
    "food sun four thought let keep eye never last door between city tree cross since hard "
    "start might story saw far sea draw left late run while press close night real life few "
    "stop open seem together next white children begin got walk example ease paper often "
    "always music those both mark book letter until mile river car feet care second group "
    "carry took rain eat room friend began idea fish mountain north once base hear horse cut "
    "sure watch color face wood main enough plain girl usual young ready above ever red list "
    "though feel talk bird soon body dog family direct pose leave song measure state product "
    "black short "
)
COMMON = _COMMON.split()
SIGNS = "+-*/=<>(){}[]#@%&_|~^$'\"\\éüñçßøαβλжяшあ的是中文عربहि—…€👍"


def babble(rng: random.Random) -> str:
    """Return a sentence from outside this world: made-up words, symbols, other scripts.

    The aligner has nothing to say about such text and learns to leave it as it is.
    """
    words = []
    for _ in range(rng.randint(2, 12)):
        kind = rng.random()
        if kind < 0.55:
            syllables = rng.choices(SYLLABLES, k=rng.randint(1, 4))
            words.append("".join(syllables))
        elif kind < 0.85:
            words.append(rng.choice(COMMON))
        elif kind < 0.93:
            words.append(str(rng.randint(0, 10 ** rng.randint(1, 5))))
        else:
            words.append("".join(rng.choices(SIGNS, k=rng.randint(1, 4))))
    if rng.random() < 0.7:
        words[0] = words[0].capitalize()
    joined = "".join(w + rng.choice((" ", " ", " ", " ", " ", ", ", "-")) for w in words)
    return joined.rstrip(" ,-") + rng.choice((".", ".", ".", "!", "?", "", ":"))
