"""How small can it be? Axes -> `rungs` -> one ordinary run each (`climb`) -> what they show (`collect`, `page`)."""
