"""Chaos: a run that is killed, starved and cut off until it is done, and then compared with one that was left alone."""
