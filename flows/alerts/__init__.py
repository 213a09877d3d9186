"""Alerts: who is told what has happened to a data set, and how.

`found` reads what has happened from the store, `receivers` tell somebody, `settings` has the alerts of this machine,
`progress` what each of them has sent, `delivery` sends what is due, `watching` does so for `idxflow up`.
"""
