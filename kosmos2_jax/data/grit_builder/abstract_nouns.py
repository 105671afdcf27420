"""Nouns that no box shows, by lemma.

The paper drops noun chunks such as "time", "love" and "freedom"; its list is not published (spec
section 6). This one has those, places within a thing ("front", "side"), measures and portions, and
words for the picture itself. A bare number or a word for a quantity is none: "a couple of dogs".
"""

from __future__ import annotations

ABSTRACT_NOUNS = frozenset(
    """
    ability absence access act action activity addition advantage advice age aim air amount anger
    attention autumn back background beauty beginning behalf benefit birth bit bottom business care
    case cause center centre century chance change choice class collection color colour comfort
    comparison concept condition conversation corner cost culture danger date day death decade deal
    decision degree depth design detail difference direction distance dream duration ease edge
    education effect effort end energy evening event evidence example excitement experience
    fact fall fashion fear feeling form foreground freedom friendship front fun future glory growth
    half happiness health height help history hope hour idea illustration image imagination
    importance information inside inspiration intention interest joy kind knowledge lack left length
    level life likes line lot love luck majority manner meaning memory middle midst mind minute
    moment mood month morning motion movement music name nature need news night noise none number
    opinion opportunity option order outside overview pain panorama part passion past peace
    perfection period perspective photo photograph photography picture piece pleasure point position
    possibility power preparation presence present pride print problem process progress purpose
    quality quantity question rate reality reason relation rest result right road-trip row scene
    season second secret sense sentiment series shape side sight sign-off silence size solitude
    sort sound speed spirit spring stage-fright start state stock story strength stress style
    success summer sunset-time support surprise symbol team-work technique tendency theme thing
    thought time today tomorrow top tradition travel trip truth turn type union use value variety
    version view wait war warmth way wealth week weekend weight while width winter wisdom
    wonder work world worth year yesterday youth
    """.split()
)
