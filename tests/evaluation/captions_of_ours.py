"""Captions for tests: odd ones written by hand, and ordinary ones put together at random."""

from __future__ import annotations

import random

ODD = """
The man's dog can't cross the dogs' path; he'll wait, won't he?
She's got a "No Parking" sign (a red one) behind her.
Mr. Jones and Mrs. O'Brien visit St. Mary's church at 5 p.m. on Jan. 5.
A U.S. flag hangs above the U.S.A. team's bus. The bus is blue.
Two t-shirts, an x-ray and a 12-inch pizza on a black/white table.
He cannot see it. We're gonna go; they've gotta stay.
A sign reads "5th Ave." and another "W. 42nd St." on a pole.
It costs $5.99, or £3.50, or 20% less than 1,000.
A bottle of 7-Up next to a B&B near an AT&T store.
The clock says 10:45 a.m. and the other one 22:45.
Rock 'n' roll band from the '80s, back in '05.
3 1/2 cups of flour and 1/2 cup of sugar
3-year-old boy's mid-air jump ... he's fine!!!
What's this?! A cat in a hat?
a cat,a dog;a bird: all on one sofa
end.Next sentence starts without a space.
see www.example.com or write to someone@example.org today
a café with a naïve painting by Zoë
a jet-ski [right] and a sail-boat {left}
I'd've said it's y'all's, ma'am, at six o'clock
“Curly quotes” and ‘single ones’ — it’s a dash – or two
smile :) and frown :( on two t-shirts
a #1 fan with a #winner banner greets @someone
wolves' den / bears' cave w/ sign
no. 10 bus and No. 7 tram; no. That is all.
the so-called "big" apple -- not so big
100km/h limit, 5'10" tall, 30% off
vitamin c. The plate is full of oranges.
a cup of tea & a scone &amp; jam
&lt;b&gt; tags <b>bold</b> in a screenshot
half ½ of a pie, 5¢ a slice, 20°C outside
a dog jumps, a dog lands... a dog sleeps.....
D'Angelo's restaurant, l'eau bottles, d'ye see
Harley-Davidson's stand in Washington, D.C. is closed
e.g. a fork, i.e. cutlery, etc., on a napkin
C++ book and a C# book on Dr. Who's desk vs. mine
somethin' fishy with the ol' boat, runnin' late
it isn't, aren't, ain't, shan't, mustn't be so
call 555-1234 or (555) 123-4567 now
a.m. news at 6:30pm on TV2
'tis the season; 'twas the night
a child 's toy , a woman 's bag .
emoji 😀 and a star ★ on the cap
an under_score and a *starred* word ~ here ^ there
+5 points, -3 degrees, 2x4 board, 4x4's wheels
""".strip().splitlines()

_WHO = (
    "a man",
    "two women",
    "the boy's father",
    "a little girl in a pink T-shirt",
    "three dogs",
    "Mr. Smith",
    "an old lady with a walking-stick",
    "5 people",
    "a police officer",
    "my neighbour's cat",
    "someone",
    "the U.S. team",
)
_DOES = (
    "is riding",
    "isn't holding",
    "sits beside",
    "looks at",
    "can't reach",
    "jumps over",
    "are standing near",
    "walks past",
    "doesn't see",
    "carries",
    "points at",
)
_WHAT = (
    "a red bicycle",
    'a sign that says "STOP"',
    "the other's umbrella",
    "a half-eaten sandwich",
    "a 10-foot wave",
    "an ice-cream (vanilla)",
    "a bus no. 12",
    "a black/white photo",
    "a pile of books, papers and pens",
    "the dogs' bowls",
    "a clock reading 3:15",
    "1/2 of a pizza",
)
_WHERE = (
    "on the beach",
    "in front of St. Paul's",
    "at night",
    "in a field of grass",
    "by the window; outside it's raining",
    "on 5th Ave.",
    "under an old tree - or so it seems",
    "in the '90s",
    "at 7 p.m.",
    "near the lake, far from town",
    "",
)


def captions(count: int, seed: int) -> list[str]:
    """Returns captions put together at random."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        words = " ".join(filter(None, map(rng.choice, (_WHO, _DOES, _WHAT, _WHERE))))
        words = rng.choice((str, str.capitalize, str.upper, str))(words)
        made.append(words + rng.choice((".", "", " .", "!", "...", "  ")))
    return made
