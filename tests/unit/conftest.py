"""How hypothesis runs here: a busy machine is no failure.

Owns: the profile of all property tests; the limit in time is pytest's.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("turnaway", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("turnaway")
