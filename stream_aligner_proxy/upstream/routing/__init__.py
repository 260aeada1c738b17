"""Several upstreams behind one proxy: which of them a reply goes to, and what happens when it
cannot.

    patterns   a model's name, or a pattern with one `*`
    table      the routes: from a name to its targets
    choosing   which target a conversation belongs to
    health     whether an upstream is worth asking
    member     one upstream with its health, its limit and its counts
    retrying   what is worth a second try, and when
    lease      the upstream of one reply: tries, falls back, stays
"""
