"""Interventions: named rules on a session's score, and the decisions that they lead to.

Pure: from a file's text to rules, and from a session's facts to decisions. The service decides with it in the fold, and
training counts with it how often a rule would have fired on past sessions.
"""
