"""The stage `replicate`: train with further seeds, so that the verdict covers training as well as test rows."""
