"""Write models in the formats of other programs, each with a card and a proof that it is still the same model."""
