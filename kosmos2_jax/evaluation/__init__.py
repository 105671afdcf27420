"""Scores as pure functions of strings, boxes and numbers; sheets and reports to look at."""
