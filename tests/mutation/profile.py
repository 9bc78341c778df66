"""How Hypothesis runs while mutants are tried: the same examples each time, and no search for the smallest failure."""

from hypothesis import Phase, settings

settings.register_profile(
    "mutants", phases=(Phase.explicit, Phase.generate), derandomize=True, database=None, deadline=None
)
settings.load_profile("mutants")
